"""Runs compiled CUDA code (SASS of sm_90) on a CPU, a warp at a time, and counts it.

What cuobjdump prints is taken for 32 lanes as numpy arrays. Integers, floats, memory,
shuffles, divergence (BSSY, BSYNC) and block barriers are carried out, so that loops
end where they end on a GPU and addresses are the real ones; a block's results can be
compared with a reference. Of caches only a block's share of L1 is modeled; warps take
turns of so many instructions each, and time is not modeled at all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

LANES = 32
FULL = (1 << 32) - 1
SECTOR, LINE = 32, 128  # bytes: of a transfer from L2, of a line in L1
TURN = 64  # instructions that a warp runs before the next one's turn
BANKS = 32  # of shared memory, 4 bytes wide
PARAMETERS = 0x210  # where a kernel's arguments start in constant bank 0
_LANE = np.arange(LANES, dtype=np.uint32)


def _full(value: int) -> np.ndarray:
    return np.full(LANES, value & FULL, np.uint32)


@dataclass
class Instruction:
    """One line: ``@guard name operands``."""

    address: int
    guard: str
    name: str
    operands: list[str]
    run: Callable | None = None

    @property
    def opcode(self) -> str:
        return self.name.split('.')[0]


def parse(text: str) -> dict[str, list[Instruction]]:
    """Functions of a listing of ``cuobjdump -sass`` by their mangled names."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if found := re.match(r'\s*Function : (\S+)', line):
            code = functions.setdefault(found[1], [])
        elif found := re.match(
            r'\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([\w.]+)\s*(.*?)\s*;', line
        ):
            address, guard, name, rest = found.groups()
            operands = [part.strip() for part in rest.split(',')] if rest else []
            code.append(Instruction(int(address, 16), guard or '', name, operands))
    return functions


# ---- operands ------------------------------------------------------------------


def _number(text: str) -> int | None:
    found = re.fullmatch(r'(-?)0x([0-9a-f]+)', text)
    return None if not found else int(found[2], 16) * (-1 if found[1] else 1)


def _half(text: str) -> int:
    return int(np.float16(_float(text)).view(np.uint16))


def _float(text: str) -> float:
    text = text.replace('QNAN', 'nan').replace('SNAN', 'nan').replace('INF', 'inf')
    return float(text.lower())


_REGISTER = re.compile(r'(U?R)(\d+|Z)((?:\.\w+)*)')
_CONSTANT = re.compile(r'c\[0x([0-9a-f]+)\]\[(?:(U?R\w+)\+?)?(?:0x([0-9a-f]+))?\]')


def _plain(text: str) -> tuple[str, bool, bool, bool]:
    """An operand without its signs: (text, negated, absolute, inverted)."""
    negated = text.startswith('-') and not re.fullmatch(r'-(0x)?[0-9.].*', text)
    text = text[1:] if negated else text
    inverted = text.startswith('~')
    text = text[1:] if inverted else text
    absolute = text.startswith('|')
    return text.strip('|'), negated, absolute, inverted


def _raw(text: str, wide: bool = False, is_float: bool = False) -> Callable:
    """Bits of an operand without signs: f(warp) -> uint32, or uint64 if wide."""
    if found := _REGISTER.match(text):
        kind, index = found[1], found[2]
        if index == 'Z':
            zero = np.zeros(LANES, np.uint64 if wide else np.uint32)
            return lambda w: zero
        i = int(index)
        if wide:
            if kind == 'R':
                return lambda w: w.pair(w.r, i)
            return lambda w: w.pair(w.ur, i)
        if kind == 'R':
            return lambda w: w.r[i]
        return lambda w: w.ur[i]
    if found := _CONSTANT.match(text):
        bank, base, offset = int(found[1], 16), found[2], int(found[3] or '0', 16)
        if base and base not in ('RZ', 'URZ'):
            index = _raw(base)
            return lambda w: w.constant_at(bank, index(w) + np.uint32(offset), wide)
        return lambda w: w.constant(bank, offset, wide)
    number = _number(text)
    if number is None:
        if not re.fullmatch(r'[-+]?(\d.*|INF|QNAN|SNAN)', text):
            raise ValueError(f'operand {text!r} is not known; add it to _raw')
        if wide:
            bits = int(np.float64(_float(text)).view(np.uint64))
        else:
            bits = int(np.float32(_float(text)).view(np.uint32))
        if not is_float:
            raise ValueError(f'operand {text!r} of an integer instruction')
    elif wide:
        bits = (number << 32) if is_float else number
    else:
        bits = number
    if wide:
        value64 = np.full(LANES, bits & ((1 << 64) - 1), np.uint64)
        return lambda w: value64
    value = _full(bits)
    return lambda w: value


def _integer(text: str) -> Callable:
    """f(warp) -> uint32."""
    text, negated, absolute, inverted = _plain(text)
    get = _raw(text)
    if absolute:
        bare = get
        get = lambda w: np.abs(bare(w).view(np.int32)).view(np.uint32)  # noqa: E731
    if negated:
        return lambda w: -get(w)
    if inverted:
        return lambda w: ~get(w)
    return get


def _addend(text: str) -> Callable:
    """f(warp) -> uint64 below 2^32 + 1, such that a sum's carry is its bit 32."""
    text, negated, _, inverted = _plain(text)
    get = _raw(text)
    if negated:
        return lambda w: (~get(w)).astype(np.uint64) + np.uint64(1)
    if inverted:
        return lambda w: (~get(w)).astype(np.uint64)
    return lambda w: get(w).astype(np.uint64)


def _wide(text: str) -> Callable:
    """f(warp) -> uint64 of a register pair."""
    text, negated, _, inverted = _plain(text)
    get = _raw(text, wide=True)
    if negated:
        return lambda w: -get(w)
    if inverted:
        return lambda w: ~get(w)
    return get


def _floating(text: str, double: bool = False) -> Callable:
    """f(warp) -> float32 or float64."""
    text, negated, absolute, _ = _plain(text)
    half = re.search(r'\.H([01])_H\1', text)
    get = _raw(text, wide=double, is_float=True)
    kind = np.float64 if double else np.float32
    if half:
        shift = np.uint32(16 * int(half[1]))

        def bits(w):
            low = (get(w) >> shift).astype(np.uint16)
            return low.view(np.float16).astype(np.float32)
    else:

        def bits(w):
            return get(w).view(kind)

    if absolute and negated:
        return lambda w: -np.abs(bits(w))
    if absolute:
        return lambda w: np.abs(bits(w))
    if negated:
        return lambda w: -bits(w)
    return bits


def _predicate(text: str) -> Callable:
    """f(warp) -> bool."""
    negated = text.startswith('!')
    text = text.lstrip('!')
    uniform = text.startswith('U')
    index = 7 if text.endswith('T') else int(text[-1])
    if uniform:
        if negated:
            return lambda w: ~w.up[index]
        return lambda w: w.up[index]
    if negated:
        return lambda w: ~w.p[index]
    return lambda w: w.p[index]


def _is_predicate(text: str) -> bool:
    return re.fullmatch(r'!?U?P(\d|T)', text) is not None


def _set_predicate(text: str) -> Callable:
    if text.endswith('T'):
        return lambda w, value, mask: None
    index = int(text[-1])
    if text.startswith('U'):
        return lambda w, value, mask: np.copyto(w.up[index], value)
    return lambda w, value, mask: np.copyto(w.p[index], value, where=mask)


def _target(text: str, count: int = 1) -> Callable:
    """f(warp, value, mask) that writes ``count`` registers, lowest word first."""
    found = _REGISTER.match(text)
    if not found:
        raise ValueError(f'target {text!r} is not known')
    if found[2] == 'Z':
        return lambda w, value, mask: None
    i, uniform = int(found[2]), found[1] == 'UR'

    if count == 1:
        if uniform:
            return lambda w, value, mask: np.copyto(w.ur[i], value, casting='unsafe')
        return lambda w, value, mask: np.copyto(
            w.r[i], value, where=mask, casting='unsafe'
        )

    def write(w, value, mask):
        file, where = (w.ur, True) if uniform else (w.r, mask)
        low = (value & np.uint64(FULL)).astype(np.uint32)
        high = (value >> np.uint64(32)).astype(np.uint32)
        np.copyto(file[i], low, where=where)
        np.copyto(file[i + 1], high, where=where)

    return write


# ---- instructions --------------------------------------------------------------

_COMPARE = dict(
    LT=np.less,
    LE=np.less_equal,
    GT=np.greater,
    GE=np.greater_equal,
    EQ=np.equal,
    NE=np.not_equal,
)
_COMBINE = dict(AND=np.logical_and, OR=np.logical_or, XOR=np.logical_xor)


def _split(operands: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(targets, sources, trailing predicates) of an arithmetic instruction."""
    targets = [operands[0]]
    rest = operands[1:]
    while rest and _is_predicate(rest[0]):
        targets.append(rest.pop(0))
    tail = []
    while rest and _is_predicate(rest[-1]):
        tail.insert(0, rest.pop())
    return targets, rest, tail


def _add(i: Instruction) -> Callable:
    """IADD3, VIADD and their kin: any number of addends, carries in and out."""
    targets, sources, tail = _split(i.operands)
    addends = [_addend(text) for text in sources]
    carries = [_predicate(text) for text in tail] if '.X' in i.name else []
    put, outs = _target(targets[0]), [_set_predicate(text) for text in targets[1:]]
    if not carries and not outs:
        plain = [_integer(text) for text in sources if text not in ('RZ', 'URZ')]
        if not plain:
            plain = [_integer('RZ')]

        def run(w, mask):
            total = plain[0](w)
            for get in plain[1:]:
                total = total + get(w)
            put(w, total, mask)

        return run

    def run_wide(w, mask):
        total = addends[0](w)
        for get in addends[1:]:
            total = total + get(w)
        for carry in carries:
            total = total + carry(w)
        put(w, total & np.uint64(FULL), mask)
        for index, out in enumerate(outs):
            out(w, total >= np.uint64((index + 1) << 32), mask)

    return run_wide


def _multiply(i: Instruction) -> Callable:
    targets, sources, tail = _split(i.operands)
    outs = [_set_predicate(text) for text in targets[1:]]
    carry = _predicate(tail[0]) if '.X' in i.name else None
    unsigned = '.U32' in i.name
    if '.WIDE' not in i.name and '.HI' not in i.name:
        put = _target(targets[0])
        a, b, c = (_integer(text) for text in sources)
        if carry is not None:
            return lambda w, mask: put(w, a(w) * b(w) + c(w) + carry(w), mask)
        if sources[0] == 'RZ' or sources[1] == 'RZ':
            return lambda w, mask: put(w, c(w), mask)
        if sources[1] == '0x1':
            return lambda w, mask: put(w, a(w) + c(w), mask)
        return lambda w, mask: put(w, a(w) * b(w) + c(w), mask)
    a, b, c = _integer(sources[0]), _integer(sources[1]), _wide(sources[2])
    put = _target(targets[0], 2 if '.WIDE' in i.name else 1)
    high = '.HI' in i.name

    def run(w, mask):
        if unsigned:
            product = a(w).astype(np.uint64) * b(w).astype(np.uint64)
        else:
            product = a(w).view(np.int32).astype(np.int64) * b(w).view(np.int32)
            product = product.view(np.uint64)
        addend = c(w)
        total = product + addend
        if carry is not None:
            total = total + carry(w)
        put(w, total >> np.uint64(32) if high else total, mask)
        for out in outs:
            out(w, total < product, mask)

    return run


def _lea(i: Instruction) -> Callable:
    """(a << shift) + b, or its high word with the bits of c above a."""
    targets, sources, tail = _split(i.operands)
    put, outs = _target(targets[0]), [_set_predicate(text) for text in targets[1:]]
    shift = np.uint64(_number(sources[-1]))
    negated = sources[0].startswith('-')
    a = _raw(sources[0].lstrip('-'))
    b = _addend(sources[1])
    high, signed = '.HI' in i.name, '.SX32' in i.name
    above = _raw(sources[2]) if high and not signed else None
    carry = _predicate(tail[0]) if '.X' in i.name else None

    def run(w, mask):
        value = a(w)
        if signed:
            wide = value.view(np.int32).astype(np.int64).view(np.uint64)
        else:
            wide = value.astype(np.uint64)
        if above is not None:
            wide = wide | (above(w).astype(np.uint64) << np.uint64(32))
        if negated:
            wide = -wide
        wide = wide << shift
        part = wide >> np.uint64(32) if high else wide & np.uint64(FULL)
        total = part + b(w)
        if carry is not None:
            total = total + carry(w)
        put(w, total & np.uint64(FULL), mask)
        for out in outs:
            out(w, total >= np.uint64(1 << 32), mask)

    return run


def _shift(i: Instruction) -> Callable:
    low, by, high = (_integer(text) for text in i.operands[1:4])
    put = _target(i.operands[0])
    left, take_high = '.L' in i.name, '.HI' in i.name
    signed, wraps = '.S32' in i.name or '.S64' in i.name, '.W' in i.name
    both = '64' in i.name
    if left and not take_high and not both:

        def run_left(w, mask):
            count = by(w) & np.uint32(31) if wraps else by(w)
            value = low(w).astype(np.uint64) << np.minimum(count, 32).astype(np.uint64)
            put(w, value & np.uint64(FULL), mask)

        return run_left

    def run(w, mask):
        limit = 63 if both else 31
        count = by(w)
        count = count & np.uint32(limit) if wraps else np.minimum(count, limit + 1)
        if not both and take_high and not left:  # the upper word alone is shifted
            if signed:
                value = high(w).view(np.int32) >> np.minimum(count, 31).astype(np.int32)
                put(w, value.view(np.uint32), mask)
            else:
                value = high(w).astype(np.uint64) >> count.astype(np.uint64)
                put(w, value, mask)
            return
        word = low(w).astype(np.uint64) | (high(w).astype(np.uint64) << np.uint64(32))
        count64 = np.minimum(count, 63).astype(np.uint64)
        if left:
            word = word << count64
        elif signed:
            word = (word.view(np.int64) >> count64.astype(np.int64)).view(np.uint64)
        else:
            word = word >> count64
        put(w, word >> np.uint64(32) if take_high else word & np.uint64(FULL), mask)

    return run


def _logic(values: list[np.ndarray], table: int, ones):
    """The function of three inputs whose results are the bits of ``table``."""
    a, b, c = values
    out = a ^ a
    for index in range(8):
        if table >> index & 1:
            out = out | (
                (a if index & 4 else a ^ ones)
                & (b if index & 2 else b ^ ones)
                & (c if index & 1 else c ^ ones)
            )
    return out


def _lop3(i: Instruction) -> Callable:
    operands = list(i.operands)
    out = _set_predicate(operands.pop(0)) if _is_predicate(operands[0]) else None
    put = _target(operands[0])
    a, b, c = (_integer(text) for text in operands[1:4])
    table, ones = _number(operands[4]), np.uint32(FULL)
    quick = {
        0xC0: lambda x, y, z: x & y,
        0xFC: lambda x, y, z: x | y,
        0x3C: lambda x, y, z: x ^ y,
        0x33: lambda x, y, z: ~y,
    }.get(table)
    evaluate = quick or (lambda x, y, z: _logic([x, y, z], table, ones))

    def run(w, mask):
        value = evaluate(a(w), b(w), c(w))
        put(w, value, mask)
        if out is not None:
            out(w, value != 0, mask)

    return run


def _plop3(i: Instruction) -> Callable:
    first, second = (_set_predicate(text) for text in i.operands[:2])
    sources = [_predicate(text) for text in i.operands[2:5]]
    tables = [_number(text) for text in i.operands[5:7]]

    def run(w, mask):
        values = [get(w) for get in sources]
        results = [_logic(values, table, True) for table in tables]
        first(w, results[0], mask)
        second(w, results[1], mask)

    return run


def _setp(i: Instruction) -> Callable:
    """ISETP, FSETP, DSETP: compare, combine with a predicate."""
    parts = i.name.split('.')
    double, floating = parts[0].startswith('D'), parts[0][0] in 'FD'
    first, second = (_set_predicate(text) for text in i.operands[:2])
    if floating:
        a, b = (_floating(text, double) for text in i.operands[2:4])
    else:
        a, b = (_integer(text) for text in i.operands[2:4])
    others = [_predicate(text) for text in i.operands[4:]]
    combine = next(_COMBINE[part] for part in parts if part in _COMBINE)
    name, unordered = parts[1], False
    if floating and name not in _COMPARE and name.endswith('U'):
        name, unordered = name[:-1], True
    compare = _COMPARE.get(name)
    if compare is None and name not in ('NUM', 'NAN'):
        raise ValueError(f'comparison {i.name} is not known')
    unsigned, extended = '.U32' in i.name, '.EX' in i.name

    def run(w, mask):
        x, y = a(w), b(w)
        if not floating and not unsigned:
            x, y = x.view(np.int32), y.view(np.int32)
        if compare is None:
            value = np.isnan(x) | np.isnan(y)
            value = ~value if name == 'NUM' else value
        else:
            value = compare(x, y)
            if floating and name == 'NE' and not unordered:
                value = value & ~(np.isnan(x) | np.isnan(y))
            elif unordered:
                value = value | np.isnan(x) | np.isnan(y)
        if extended:  # x and y are upper words, others[1] compared the lower ones
            if name == 'NE':
                value = (x != y) | others[1](w)
            elif name == 'EQ':
                value = (x == y) & others[1](w)
            else:
                strict = _COMPARE[name[0] + 'T']
                value = strict(x, y) | ((x == y) & others[1](w))
        other = others[0](w)
        results = combine(value, other), combine(~value, other)
        first(w, results[0], mask)
        second(w, results[1], mask)

    return run


def _select(i: Instruction) -> Callable:
    put = _target(i.operands[0])
    get = _raw_float_bits if i.opcode == 'FSEL' else _integer
    a, b = (get(text) for text in i.operands[1:3])
    chosen = _predicate(i.operands[3])
    return lambda w, mask: put(w, np.where(chosen(w), a(w), b(w)), mask)


def _raw_float_bits(text: str) -> Callable:
    get = _floating(text)
    return lambda w: get(w).view(np.uint32)


def _least(i: Instruction) -> Callable:
    """VIMNMX(a, b) and VIADDMNMX(a + b, c): the lesser where the predicate holds."""
    put = _target(i.operands[0])
    sources = [text for text in i.operands[1:] if not _is_predicate(text)]
    values = [_integer(text) for text in sources]
    lesser = _predicate(i.operands[-1])
    unsigned = '.U32' in i.name
    relu = '.RELU' in i.name

    def run(w, mask):
        x, y = values[0](w), values[-1](w)
        if len(values) == 3:
            x = x + values[1](w)
        if not unsigned:
            x, y = x.view(np.int32), y.view(np.int32)
        value = np.where(lesser(w), np.minimum(x, y), np.maximum(x, y))
        if relu:
            value = np.maximum(value, 0)
        put(w, value.view(np.uint32), mask)

    return run


def _prmt(i: Instruction) -> Callable:
    put = _target(i.operands[0])
    a, selector, b = (_integer(text) for text in i.operands[1:4])

    def run(w, mask):
        word = a(w).astype(np.uint64) | (b(w).astype(np.uint64) << np.uint64(32))
        chosen, out = selector(w).astype(np.uint64), np.zeros(LANES, np.uint64)
        for byte in range(4):
            nibble = chosen >> np.uint64(4 * byte) & np.uint64(15)
            value = word >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = np.where(value & np.uint64(128), np.uint64(255), np.uint64(0))
            value = np.where(nibble & np.uint64(8), sign, value)
            out |= value << np.uint64(8 * byte)
        put(w, out, mask)

    return run


def _move(i: Instruction) -> Callable:
    put, get = _target(i.operands[0]), _integer(i.operands[1])
    return lambda w, mask: put(w, get(w), mask)


def _float_op(count: int, f: Callable, double: bool = False) -> Callable:
    def build(i: Instruction) -> Callable:
        sources = [text for text in i.operands[1:] if not _is_predicate(text)]
        put = _target(i.operands[0], 2 if double else 1)
        gets = [_floating(text, double) for text in sources[:count]]
        bits = np.uint64 if double else np.uint32
        kind = np.float64 if double else np.float32

        def run(w, mask):
            value = np.asarray(f(*(get(w) for get in gets)), dtype=kind)
            put(w, value.view(bits), mask)

        return run

    return build


def _fma(a, b, c):
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _half_fma(i: Instruction) -> Callable:
    """HFMA2 with constants, which also serves to load a constant."""
    put = _target(i.operands[0])
    sources = i.operands[1:]
    registers = [t for t in sources if _REGISTER.match(_plain(t)[0])]
    constants = sources[len(registers) :]
    if not all(_plain(t)[0] == 'RZ' for t in registers) or len(constants) != 2:
        return _ignored(i)
    # the addend, upper half first
    value = _full(_half(constants[0]) << 16 | _half(constants[1]))
    return lambda w, mask: put(w, value, mask)


def _half_add(i: Instruction) -> Callable:
    """HADD2.F32: a half as a float."""
    if '.F32' not in i.name:
        return _ignored(i)
    return _float_op(2, np.add)(i)


def _minmax_float(i: Instruction) -> Callable:
    put = _target(i.operands[0])
    a, b = (_floating(text) for text in i.operands[1:3])
    lesser = _predicate(i.operands[3])

    def run(w, mask):
        x, y = a(w), b(w)
        value = np.where(lesser(w), np.fmin(x, y), np.fmax(x, y))
        put(w, value.view(np.uint32), mask)

    return run


def _mufu(i: Instruction) -> Callable:
    f = dict(
        RCP=lambda x: 1 / x,
        RSQ=lambda x: 1 / np.sqrt(x),
        SQRT=np.sqrt,
        EX2=np.exp2,
        LG2=np.log2,
        SIN=np.sin,
        COS=np.cos,
        TANH=np.tanh,
    ).get(i.name.split('.')[1])
    if f is None:
        raise ValueError(f'{i.name} is not known')
    return _float_op(1, f)(i)


def _to_float(i: Instruction) -> Callable:
    """I2F: rounded up (RP), down (RM) or to the nearest."""
    double, wide = '.F64' in i.name, '64' in i.name.replace('.F64', '')
    unsigned = '.U32' in i.name or '.U64' in i.name
    get = _wide(i.operands[1]) if wide else _integer(i.operands[1])
    put = _target(i.operands[0], 2 if double else 1)
    kind = np.float64 if double else np.float32
    signed_type = np.int64 if wide else np.int32

    def run(w, mask):
        integer = get(w)
        if not unsigned:
            integer = integer.view(signed_type)
        value = integer.astype(kind)
        if '.RP' in i.name and not double:
            exact = integer.astype(np.float64)
            up = np.nextafter(value, np.float32(np.inf))
            value = np.where(value.astype(np.float64) < exact, up, value)
        value = value.astype(kind)
        put(w, value.view(np.uint64 if double else np.uint32), mask)

    return run


def _to_integer(i: Instruction) -> Callable:
    wide = '.S64' in i.name or '.U64' in i.name
    unsigned = '.U32' in i.name or '.U64' in i.name
    double = '.F64' in i.name
    get = _floating(i.operands[1], double)
    put = _target(i.operands[0], 2 if wide else 1)
    bits = 64 if wide else 32
    least, most = (
        (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    rounding = np.trunc
    for name, f in (('FLOOR', np.floor), ('CEIL', np.ceil), ('TRUNC', np.trunc)):
        if name in i.name:
            rounding = f
            break
    else:
        rounding = np.rint

    def run(w, mask):
        value = rounding(np.nan_to_num(get(w).astype(np.float64), nan=0.0))
        # 2^63 and 2^64 are no int64 or uint64: clipped to the double below
        top = math.nextafter(float(most), 0) if wide else float(most)
        value = np.clip(value, float(least), top)
        if unsigned:
            put(w, value.astype(np.uint64), mask)
        else:
            put(
                w, value.astype(np.int64).view(np.uint64) & np.uint64(2**bits - 1), mask
            )

    return run


def _f2f(i: Instruction) -> Callable:
    to, of = i.name.split('.')[1:3] if i.name.count('.') >= 2 else ('', '')
    if (to, of) == ('F32', 'F64'):
        put, get = _target(i.operands[0]), _floating(i.operands[1], True)
        return lambda w, mask: put(w, get(w).astype(np.float32).view(np.uint32), mask)
    if (to, of) == ('F64', 'F32'):
        put, get = _target(i.operands[0], 2), _floating(i.operands[1])
        return lambda w, mask: put(w, get(w).astype(np.float64).view(np.uint64), mask)
    raise ValueError(f'{i.name} is not known')


def _pack(i: Instruction) -> Callable:
    """F2FP: two floats to two halves, the first one on top."""
    put = _target(i.operands[0])
    high, low = (_floating(text) for text in i.operands[1:3])
    brain = 'BF16' in i.name

    def halves(value):
        if not brain:
            return value.astype(np.float16).view(np.uint16).astype(np.uint32)
        bits = np.ascontiguousarray(value).view(np.uint32).astype(np.uint64)
        odd = bits >> np.uint64(16) & np.uint64(1)
        return ((bits + np.uint64(0x7FFF) + odd) >> np.uint64(16)).astype(np.uint32)

    return lambda w, mask: put(
        w, halves(high(w)) << np.uint32(16) | halves(low(w)), mask
    )


def _special(i: Instruction) -> Callable:
    put = _target(i.operands[0])
    name = i.operands[1]
    return lambda w, mask: put(w, w.special(name), mask)


def _cs2r(i: Instruction) -> Callable:
    count = 1 if '.32' in i.name else 2
    put, zero = _target(i.operands[0], count), np.zeros(LANES, np.uint64)
    return lambda w, mask: put(w, zero, mask)


def _load_constant(i: Instruction) -> Callable:
    wide = '.64' in i.name
    put, get = _target(i.operands[0], 2 if wide else 1), _raw(i.operands[1], wide)
    width = dict(U8=0xFF, U16=0xFFFF).get(i.name.split('.')[-1])
    if width:
        return lambda w, mask: put(w, get(w) & np.uint32(width), mask)
    if i.name.split('.')[-1] in ('S8', 'S16', '128'):
        raise ValueError(f'{i.name} is not known')
    return lambda w, mask: put(w, get(w), mask)


def _first(mask: np.ndarray) -> int:
    return int(mask.argmax())


def _to_uniform(i: Instruction) -> Callable:
    sources = [text for text in i.operands[1:] if not _is_predicate(text)]
    put, get = _target(i.operands[0]), _integer(sources[-1])
    return lambda w, mask: put(w, get(w)[_first(mask)], mask)


def _vote(i: Instruction) -> Callable:
    """VOTE.ANY, ALL, EQ: a register of the lanes' predicates, and one for all."""
    operands = list(i.operands)
    put = None
    if not _is_predicate(operands[0]):
        put = _target(operands.pop(0))
    out = None
    if len(operands) == 2:
        out = _set_predicate(operands.pop(0))
    get = _predicate(operands[0])

    def run(w, mask):
        votes = get(w) & mask
        if put is not None:
            put(
                w, np.uint32(int(sum(1 << int(k) for k in np.flatnonzero(votes)))), mask
            )
        if out is not None:
            some, every = votes.any(), bool((votes == mask).all())
            value = some if '.ANY' in i.name else every
            if '.EQ' in i.name:
                value = every or not some
            out(w, np.full(LANES, value), mask)

    return run


def _shuffle(i: Instruction) -> Callable:
    valid = _set_predicate(i.operands[0])
    put, get = _target(i.operands[1]), _integer(i.operands[2])
    by, limits = _integer(i.operands[3]), _integer(i.operands[4])
    mode = i.name.split('.')[1]

    def run(w, mask):
        b = (by(w) & np.uint32(31)).astype(np.int64)
        clamp = (limits(w) & np.uint32(31)).astype(np.int64)
        segment = (limits(w) >> np.uint32(8) & np.uint32(31)).astype(np.int64)
        lane = _LANE.astype(np.int64)
        least, most = lane & segment, (lane & segment) | (clamp & ~segment)
        source = dict(
            UP=lane - b,
            DOWN=lane + b,
            BFLY=lane ^ b,
            IDX=least | (b & ~segment),
        )[mode]
        inside = source >= most if mode == 'UP' else source <= most
        source = np.where(inside, source, lane) & 31
        put(w, get(w)[source], mask)
        valid(w, inside, mask)

    return run


def _bits(f: Callable) -> Callable:
    def build(i: Instruction) -> Callable:
        put, get = _target(i.operands[0]), _integer(i.operands[-1])
        return lambda w, mask: put(w, f(get(w)), mask)

    return build


def _popc(value):
    return np.array([int(v).bit_count() for v in value], np.uint32)


def _brev(value):
    return np.array([int(f'{int(v):032b}'[::-1], 2) for v in value], np.uint32)


def _flo(value):  # index of the highest bit
    return np.array([(int(v).bit_length() - 1) & FULL for v in value], np.uint32)


def _iabs(value):
    return np.abs(value.view(np.int32)).view(np.uint32)


def _sgxt(i: Instruction) -> Callable:
    put, get = _target(i.operands[0]), _integer(i.operands[1])
    shift = np.int32(32 - _number(i.operands[2]))

    def run(w, mask):
        value = get(w) << shift.astype(np.uint32)
        if '.U32' in i.name:
            put(w, value >> shift.astype(np.uint32), mask)
        else:
            put(w, (value.view(np.int32) >> shift).view(np.uint32), mask)

    return run


def _byte(text: str) -> tuple[str, int]:
    """R3.B1 as R3 and the shift of its byte."""
    found = re.search(r'\.B([0-3])', text)
    return re.sub(r'\.B[0-3]', '', text), 8 * int(found[1]) if found else 0


def _from_predicates(i: Instruction) -> Callable:
    """P2R: predicates as bits, where the mask says so, of a byte of a register."""
    put, get = _target(i.operands[0]), _integer(i.operands[2])
    chosen = _number(i.operands[3])
    _, shift = _byte(i.name)

    def run(w, mask):
        value = get(w) & np.uint32(FULL ^ chosen << shift)
        for index in range(7):
            if chosen >> index & 1:
                value = value | w.p[index].astype(np.uint32) << np.uint32(index + shift)
        put(w, value, mask)

    return run


def _to_predicates(i: Instruction) -> Callable:
    """R2P: the reverse."""
    text, shift = _byte(i.operands[1])
    get, chosen = _integer(text), _number(i.operands[2])

    def run(w, mask):
        value = get(w)
        for index in range(7):
            if chosen >> index & 1:
                bit = (value >> np.uint32(index + shift) & np.uint32(1)).astype(bool)
                np.copyto(w.p[index], bit, where=mask)

    return run


def _ignored(i: Instruction) -> Callable:
    """Counted, without effect: its results reach no branch and no address."""
    return lambda w, mask: None


# ---- memory --------------------------------------------------------------------

_ADDRESS = re.compile(
    r'(?:desc\[UR\d+\])?\[(?:(R\d+|RZ)(?:\.(64|U32|X4|X8|X16))*)?'
    r'(?:\+?(UR\d+|URZ))?(?:\+?(-?0x[0-9a-f]+))?\]'
)


def _address(text: str) -> Callable:
    """f(warp) -> uint64 of [R2.64 + UR4 + 0x10]."""
    found = _ADDRESS.fullmatch(text.replace(' ', ''))
    if not found:
        raise ValueError(f'address {text!r} is not known')
    register, how, uniform, offset = found.groups()
    offset64 = np.uint64((_number(offset) if offset else 0) & ((1 << 64) - 1))
    in_pair = '.64' in text
    scale = {'X4': 4, 'X8': 8, 'X16': 16}.get(how or '', 1)

    def get(w):
        total = np.zeros(LANES, np.uint64)
        if register and register != 'RZ':
            i = int(register[1:])
            base = w.pair(w.r, i) if in_pair and how == '64' else None
            total = (
                w.r[i].astype(np.uint64) * np.uint64(scale) if base is None else base
            )
        if uniform and uniform != 'URZ':
            i = int(uniform[2:])
            if in_pair:
                total = total + w.pair(w.ur, i)
            else:
                total = total + w.ur[i].astype(np.uint64)
        total = total + offset64
        return total if in_pair else total & np.uint64(FULL)

    return get


def _width(name: str) -> tuple[int, bool]:
    """(bytes, signed) of an access."""
    for part in name.split('.'):
        if part in ('U8', 'S8', 'U16', 'S16', '64', '128'):
            size = dict(U8=1, S8=1, U16=2, S16=2).get(part) or int(part) // 8
            return size, part in ('S8', 'S16')
        if part in ('F64', 'U64', 'S64'):
            return 8, False
    return 4, False


def _load(i: Instruction) -> Callable:
    operands = [text for text in i.operands if not _is_predicate(text)]
    size, signed = _width(i.name)
    words = max(1, size // 4)
    where = _address(operands[1])
    registers = _REGISTER.match(operands[0])
    first = 255 if registers[2] == 'Z' else int(registers[2])
    space = i.opcode

    def run(w, mask):
        addresses = where(w)
        w.block.access(space, addresses, size, mask)
        memory = w.memory(space)
        for word in range(words):
            value = memory.read(addresses + np.uint64(4 * word), min(size, 4), mask, w)
            if signed:
                shift = np.uint32(32 - 8 * size)
                value = (
                    (value << shift).view(np.int32) >> shift.astype(np.int32)
                ).view(np.uint32)
            if first != 255:
                np.copyto(w.r[first + word], value, where=mask)

    return run


def _store(i: Instruction) -> Callable:
    size, _ = _width(i.name)
    words = max(1, size // 4)
    where = _address(i.operands[0])
    found = _REGISTER.match(i.operands[1])
    first = 255 if found[2] == 'Z' else int(found[2])
    uniform = found[1] == 'UR'
    space = i.opcode

    def run(w, mask):
        addresses = where(w)
        w.block.access(space, addresses, size, mask)
        memory = w.memory(space)
        for word in range(words):
            file = w.ur if uniform else w.r
            value = _full(0) if first == 255 else file[first + word]
            memory.write(addresses + np.uint64(4 * word), min(size, 4), value, mask, w)

    return run


def _atomic(i: Instruction) -> Callable:
    """Additions without a result: RED, and atomics of which nobody reads it."""
    operands = [text for text in i.operands if not _is_predicate(text)]
    if i.opcode in ('ATOMG', 'ATOMS', 'ATOM'):
        if operands.pop(0) != 'RZ' or '.ADD' not in i.name:
            raise ValueError(f'{i.name} with a result is not known')
    size, _ = _width(i.name)
    where = _address(operands[0])
    double = '.F64' in i.name
    floating = '.F32' in i.name or double
    space = 'STS' if i.opcode == 'ATOMS' else 'STG'
    kind = np.float64 if double else (np.float32 if floating else np.uint32)
    if '.F16' in i.name or '.BF16' in i.name or '.ADD' not in i.name:
        raise ValueError(f'{i.name} is not known')
    get = _wide(operands[1]) if size == 8 else _integer(operands[1])

    def run(w, mask):
        addresses = where(w)
        w.block.access(i.opcode, addresses, size, mask)
        w.memory(space).add(addresses, get(w).view(kind), mask, w)

    return run


def _copy_async(i: Instruction) -> Callable:
    """LDGSTS: from global to shared memory, done at once; zeros where told so."""
    size, _ = _width(i.name)
    to, source = _address(i.operands[0]), _address(i.operands[1])
    valid = _predicate(i.operands[2]) if len(i.operands) > 2 else None

    def run(w, mask):
        target, origin = to(w), source(w)
        present = mask if valid is None else mask & valid(w)
        w.block.access('LDG', origin, size, present)
        w.block.access('STS', target, size, mask)
        for word in range(max(1, size // 4)):
            step = np.uint64(4 * word)
            value = w.memory('LDG').read(origin + step, min(size, 4), present, w)
            value = np.where(present, value, np.uint32(0))
            w.memory('STS').write(target + step, min(size, 4), value, mask, w)

    return run


_BUILDERS: dict[str, Callable[[Instruction], Callable]] = dict(
    IADD3=_add,
    VIADD=_add,
    UIADD3=_add,
    IMAD=_multiply,
    UIMAD=_multiply,
    LEA=_lea,
    ULEA=_lea,
    SHF=_shift,
    USHF=_shift,
    LOP3=_lop3,
    ULOP3=_lop3,
    PLOP3=_plop3,
    UPLOP3=_plop3,
    ISETP=_setp,
    UISETP=_setp,
    FSETP=_setp,
    DSETP=_setp,
    SEL=_select,
    USEL=_select,
    FSEL=_select,
    VIMNMX=_least,
    IMNMX=_least,
    VIADDMNMX=_least,
    PRMT=_prmt,
    UPRMT=_prmt,
    MOV=_move,
    UMOV=_move,
    IABS=_bits(_iabs),
    POPC=_bits(_popc),
    UPOPC=_bits(_popc),
    BREV=_bits(_brev),
    FLO=_bits(_flo),
    UFLO=_bits(_flo),
    SGXT=_sgxt,
    FADD=_float_op(2, np.add),
    FMUL=_float_op(2, np.multiply),
    FFMA=_float_op(3, _fma),
    DADD=_float_op(2, np.add, double=True),
    DMUL=_float_op(2, np.multiply, double=True),
    DFMA=_float_op(3, lambda a, b, c: a * b + c, double=True),
    FMNMX=_minmax_float,
    HADD2=_half_add,
    HFMA2=_half_fma,
    HMMA=_ignored,
    LDSM=_ignored,
    MUFU=_mufu,
    I2F=_to_float,
    I2FP=_to_float,
    F2I=_to_integer,
    F2F=_f2f,
    F2FP=_pack,
    S2R=_special,
    S2UR=_special,
    CS2R=_cs2r,
    LDC=_load_constant,
    ULDC=_load_constant,
    R2UR=_to_uniform,
    P2R=_from_predicates,
    R2P=_to_predicates,
    VOTE=_vote,
    VOTEU=_vote,
    SHFL=_shuffle,
    LDG=_load,
    LDS=_load,
    LDL=_load,
    STG=_store,
    STS=_store,
    STL=_store,
    RED=_atomic,
    REDG=_atomic,
    ATOMG=_atomic,
    ATOMS=_atomic,
    LDGSTS=_copy_async,
)
for _name in (
    'NOP YIELD LDGDEPBAR DEPBAR MEMBAR ERRBAR CCTL PMTRIG WARPSYNC NANOSLEEP FENCE '
    'ENDCOLLECTIVE'
).split():
    _BUILDERS[_name] = _ignored


# ---- warps and blocks ----------------------------------------------------------


class Memory:
    """Byte ranges at given addresses; reads elsewhere give 0 and are counted.

    Attributes:
        stray (int): Accesses of lanes outside of all ranges.
        touched (set[int]): Addresses of the ranges that anything was done to.
    """

    def __init__(self, ranges: dict[int, np.ndarray]) -> None:
        self.ranges = sorted(ranges.items())
        self.stray = 0
        self.touched: set[int] = set()

    def _each(self, addresses, size, mask) -> Iterator[tuple]:
        left = mask
        for base, data in self.ranges:
            if not left.any():
                return
            inside = left & (addresses >= base) & (addresses + size <= base + data.size)
            if inside.any():
                self.touched.add(base)
                yield data, (addresses - np.uint64(base)), inside
                left = left & ~inside
        self.stray += int(left.sum())

    def read(self, addresses, size, mask, warp) -> np.ndarray:
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
        out = np.zeros(LANES, np.uint32)
        for data, offsets, inside in self._each(addresses, np.uint64(size), mask):
            words = data[: data.size // size * size].view(kind)
            index = (offsets[inside] // np.uint64(size)).astype(np.int64)
            out[inside] = words[index]
        return out

    def write(self, addresses, size, value, mask, warp) -> None:
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
        for data, offsets, inside in self._each(addresses, np.uint64(size), mask):
            words = data[: data.size // size * size].view(kind)
            index = (offsets[inside] // np.uint64(size)).astype(np.int64)
            words[index] = value[inside].astype(kind)

    def add(self, addresses, value, mask, warp) -> None:
        size = value.dtype.itemsize
        for data, offsets, inside in self._each(addresses, np.uint64(size), mask):
            words = data[: data.size // size * size].view(value.dtype)
            index = (offsets[inside] // np.uint64(size)).astype(np.int64)
            np.add.at(words, index, value[inside])


@dataclass
class Counts:
    """What was issued, in warp instructions, and moved.

    Attributes:
        opcodes (Counter): Warp instructions by opcode.
        wavefronts (int): Passes of shared memory and L1, of up to 128 bytes.
        conflicts (int): Passes of shared memory beyond the least for its bytes.
        sectors (Counter): 32-byte sectors asked of global memory, by opcode.
        used (Counter): Bytes of them that a lane asked for, by opcode.
        hits (int): Sectors that a load found in the block's share of L1.
        stray (int): Accesses of lanes outside of shared memory.
    """

    opcodes: Counter = field(default_factory=Counter)
    wavefronts: int = 0
    conflicts: int = 0
    sectors: Counter = field(default_factory=Counter)
    used: Counter = field(default_factory=Counter)
    hits: int = 0
    stray: int = 0

    @property
    def instructions(self) -> int:
        return sum(self.opcodes.values())


class Warp:
    """Registers and lanes of a warp, each lane at its own instruction."""

    def __init__(self, block: Block, index: int) -> None:
        self.block, self.index = block, index
        self.r = np.zeros((256, LANES), np.uint32)
        self.ur = np.zeros((64, LANES), np.uint32)
        self.p = np.zeros((8, LANES), bool)
        self.up = np.zeros((8, LANES), bool)
        self.p[7] = self.up[7] = True
        thread = index * LANES + _LANE
        width, height = block.dim[:2]
        self.tid = (
            thread % width,
            thread // width % height,
            thread // (width * height),
        )
        self.alive = thread < math.prod(block.dim)
        self.pc = np.zeros(LANES, np.int64)
        self.waits = np.full(LANES, -1)  # on which convergence barrier
        self.barriers = np.zeros((16, LANES), bool)
        self.local = np.zeros((LANES, block.launch.local_bytes // 4 + 4), np.uint32)

    @staticmethod
    def pair(file: np.ndarray, i: int) -> np.ndarray:
        return file[i].astype(np.uint64) | (
            file[i + 1].astype(np.uint64) << np.uint64(32)
        )

    def constant(self, bank: int, offset: int, wide: bool) -> np.ndarray:
        return self.block.launch.constant(bank, offset, wide)

    def constant_at(self, bank: int, offsets: np.ndarray, wide: bool) -> np.ndarray:
        get = self.block.launch.constant
        return np.array([get(bank, int(o), wide)[0] for o in offsets])

    def memory(self, space: str):
        if space in ('LDG', 'STG'):
            return self.block.launch.memory
        if space in ('LDS', 'STS'):
            return self.block.shared
        return _Local

    def special(self, name: str) -> np.ndarray:
        block = self.block
        if name.startswith('SR_TID'):
            return self.tid['XYZ'.index(name[-1])]
        if name.startswith('SR_CTAID'):
            return _full(block.index['XYZ'.index(name[-1])])
        if name == 'SR_LANEID':
            return _LANE
        if name == 'SR_CgaCtaId':
            return _full(0)
        if name.endswith('MASK'):
            lane = _LANE.astype(np.uint64)
            one = np.uint64(1)
            below = (one << lane) - one
            value = {
                'SR_EQMASK': one << lane,
                'SR_LTMASK': below,
                'SR_LEMASK': below | (one << lane),
                'SR_GTMASK': ~(below | (one << lane)),
                'SR_GEMASK': ~below,
            }[name]
            return (value & np.uint64(FULL)).astype(np.uint32)
        raise ValueError(f'special register {name} is not known')

    def run(self) -> Iterator[tuple[int, int] | None]:
        """Run to the end; yields (barrier, threads or 0) at each block barrier, and
        None where it lets other warps run."""
        code, guards, opcodes = (
            self.block.launch.code,
            self.block.launch.guards,
            self.block.counts.opcodes,
        )
        index_of = self.block.launch.index_of
        limit = self.block.launch.limit
        turn = limit - TURN
        while True:
            if limit < turn:
                yield None
                turn = limit - TURN
            ready = self.alive & (self.waits < 0)
            if not ready.any():
                if self.alive.any():
                    raise RuntimeError('lanes wait for each other for ever')
                return
            pc = int(self.pc[ready].min())
            active = ready & (self.pc == pc)
            alone = bool((active == ready).all())
            others = math.inf if alone else int(self.pc[ready & ~active].min())
            at = index_of[pc]
            # as long as these lanes stay together and nobody waits further up
            while True:
                limit -= 1
                if limit < 0:
                    raise RuntimeError('a warp does not end')
                instruction = code[at]
                opcodes[instruction.name] += 1
                guard = guards[at]
                mask = active if guard is None else active & guard(self)
                if instruction.run is not None:
                    if guard is None or mask.any():
                        instruction.run(self, mask)
                    at += 1
                    if code[at].address >= others or limit < turn:
                        self.pc[active] = code[at].address
                        break
                    continue
                after = code[at + 1].address if at + 1 < len(code) else -1
                barrier = self._control(instruction, mask, active, after)
                if barrier is not None:
                    yield barrier
                if self.alive[active].all() and (self.waits[active] < 0).all():
                    places = self.pc[active]
                    place = int(places[0])
                    # released lanes may have joined
                    if alone and (places == place).all() and place < others:
                        ready = self.alive & (self.waits < 0)
                        if limit >= turn and ready.sum() == active.sum():
                            at = index_of[place]
                            continue
                break

    def _control(self, i: Instruction, mask, active, after: int):
        """Branches and barriers; moves the lanes on."""
        name, opcode = i.name, i.opcode
        self.pc[active] = after
        if not mask.any():
            return None
        if opcode == 'BRA':
            taken = mask
            if name == 'BRA.DIV':  # unless all lanes that are named have come
                named = _integer(i.operands[0])(self)[0] >> _LANE & np.uint32(1)
                taken = mask & bool((named.astype(bool) != mask).any())
            elif len(i.operands) == 2:
                taken = mask & _predicate(i.operands[0])(self)
            self.pc[taken] = _number(i.operands[-1])
        elif opcode == 'EXIT':
            self.alive &= ~mask
            self.barriers[:, mask] = False
            self._release()
        elif opcode == 'BSSY':
            self.barriers[int(i.operands[0][1:])] = mask
        elif opcode == 'BREAK':
            self.barriers[int(i.operands[-1][1:])] &= ~mask
            self._release()
        elif opcode == 'BSYNC':
            self.waits[mask] = int(i.operands[-1][1:])
            self._release()
        elif opcode == 'CALL':
            self.pc[mask] = _number(i.operands[-1])
        elif opcode == 'RET':
            register = i.operands[0].split()[0]
            self.pc[mask] = self.r[int(register[1:])][mask]
        elif opcode == 'BAR':
            if '.SYNC' not in name:
                raise ValueError(f'{name} is not known')
            counts = [_integer(text)(self)[_first(mask)] for text in i.operands]
            return counts[0], int(counts[1]) if len(counts) > 1 else 0
        else:
            raise ValueError(f'{name} is not known')
        return None

    def _release(self) -> None:
        for index in set(self.waits[self.waits >= 0]):
            waiting = self.waits == index
            if not (self.barriers[index] & ~waiting).any():
                self.waits[waiting] = -1


class _Local:
    """Local memory, where spilled registers go: 4-byte words of each lane."""

    @staticmethod
    def read(addresses, size, mask, warp):
        index = addresses // np.uint64(4) % np.uint64(warp.local.shape[1])
        return warp.local[_LANE, index.astype(np.int64)]

    @staticmethod
    def write(addresses, size, value, mask, warp):
        index = addresses // np.uint64(4) % np.uint64(warp.local.shape[1])
        warp.local[_LANE[mask], index[mask].astype(np.int64)] = value[mask]


_CONTROL = {'BRA', 'EXIT', 'BSSY', 'BSYNC', 'BREAK', 'CALL', 'RET', 'BAR'}


class Launch:
    """A kernel with its arguments.

    Args:
        code (list[Instruction]): Of the function.
        grid (tuple[int, int, int]): Blocks.
        block (tuple[int, int, int]): Threads of a block.
        shared_bytes (int): Static and dynamic shared memory.
        arguments (bytes): As they lie in constant memory.
        memory (Memory): Global memory.
        local_bytes (int): Stack frame of a thread.
        cache_bytes (int): A block's share of L1.
        limit (int): Instructions after which a warp is taken to hang.
    """

    def __init__(
        self,
        code: list[Instruction],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        arguments: bytes,
        memory: Memory,
        local_bytes: int = 0,
        cache_bytes: int = 0,
        limit: int = 10_000_000,
    ) -> None:
        self.grid, self.dim, self.shared_bytes = grid, block, shared_bytes
        self.memory, self.local_bytes, self.limit = memory, local_bytes, limit
        self.cache_sectors = max(cache_bytes, 0) // SECTOR
        bank = bytearray(PARAMETERS)
        for index, value in enumerate((*block, *grid)):
            bank[4 * index : 4 * index + 4] = int(value).to_bytes(4, 'little')
        bank += arguments + bytes(64)
        self.bank = bytes(bank)
        self._constants: dict[tuple, np.ndarray] = {}
        self.code = code
        self.index_of = {i.address: k for k, i in enumerate(code)}
        self.guards = [_predicate(i.guard) if i.guard else None for i in code]
        for i in code:
            if i.opcode in _CONTROL or i.run is not None:
                continue
            i.run = self._built(i)

    @staticmethod
    def _built(i: Instruction) -> Callable:
        try:
            build = _BUILDERS[i.opcode]
            return build(i)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            reason = f'{i.name} {", ".join(i.operands)}: {error}'

            # most of what is not known is never reached
            def fail(w, mask):
                raise NotImplementedError(f'{reason}; add it to sass.py')

            return fail

    def constant(self, bank: int, offset: int, wide: bool) -> np.ndarray:
        key = (bank, offset, wide)
        if key not in self._constants:
            if bank != 0:
                raise NotImplementedError(f'constant bank {bank} is not known')
            size = 8 if wide else 4
            bits = int.from_bytes(self.bank[offset : offset + size], 'little')
            self._constants[key] = np.full(
                LANES, bits, np.uint64 if wide else np.uint32
            )
        return self._constants[key]

    def run_block(self, index: int, counts: Counts) -> None:
        """Run one block; ``counts`` grows by what it issued."""
        x, y, _ = self.grid
        Block(self, (index % x, index // x % y, index // (x * y)), counts).run()


class Block:
    """A block: its shared memory and warps, which run in turns between barriers."""

    def __init__(self, launch: Launch, index: tuple, counts: Counts) -> None:
        self.launch, self.index, self.counts = launch, index, counts
        self.dim = launch.dim
        self.cached: dict[int, None] = {}  # sectors, the one used last at the end
        size = launch.shared_bytes + 1024  # the first KB is the system's
        self.shared = Memory({0: np.zeros(size, np.uint8)})

    def run(self) -> None:
        warps = math.ceil(math.prod(self.dim) / LANES)
        running = {k: Warp(self, k).run() for k in range(warps)}
        waiting: dict[int, tuple[int, int]] = {}
        with np.errstate(all='ignore'):
            while running:
                for k in [k for k in running if k not in waiting]:
                    try:
                        barrier = next(running[k])
                    except StopIteration:
                        del running[k]
                        continue
                    if barrier is not None:
                        waiting[k] = barrier
                released = len(waiting) < len(running)
                for barrier in set(waiting.values()):
                    there = [k for k, at in waiting.items() if at == barrier]
                    wanted = barrier[1] // LANES or len(running)
                    if len(there) >= wanted:
                        released = True
                        for k in there:
                            del waiting[k]
                if running and not released:
                    raise RuntimeError('not all warps of a block reach a barrier')
        self.counts.stray += self.shared.stray

    def access(self, space: str, addresses, size: int, mask) -> None:
        """Count the passes and sectors of one request."""
        counts = self.counts
        chosen = addresses[mask].astype(np.int64)
        if not chosen.size:
            return
        if space in ('LDS', 'STS', 'ATOMS'):
            # 8 bytes go by half warps, 16 by quarters
            parts = max(1, size // 4)
            lanes = np.flatnonzero(mask) // (LANES // parts)
            passes = 0
            for part in range(parts):
                words = np.unique(chosen[lanes == part] // 4)
                if parts > 1:
                    words = np.unique((words[:, None] + np.arange(parts)).ravel())
                if words.size:
                    passes += int(np.bincount(words % BANKS).max())
            counts.wavefronts += passes
            least = math.ceil(np.unique(chosen // 4).size * parts / BANKS)
            counts.conflicts += passes - least
        elif space in ('LDL', 'STL'):
            counts.wavefronts += max(1, size // 4)
        else:
            sectors = np.unique(np.concatenate([chosen, chosen + size - 1]) // SECTOR)
            counts.sectors[space] += sectors.size
            counts.used[space] += chosen.size * size
            counts.wavefronts += np.unique(sectors // (LINE // SECTOR)).size
            if space == 'LDG':
                counts.hits += sum(map(self._in_cache, sectors.tolist()))

    def _in_cache(self, sector: int) -> bool:
        """Whether a sector is in L1, where it is from now on."""
        found = sector in self.cached
        if found:
            del self.cached[sector]
        self.cached[sector] = None
        if len(self.cached) > self.launch.cache_sectors:
            del self.cached[next(iter(self.cached))]
        return found
