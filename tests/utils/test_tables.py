"""Tables in which any name is shown as it is, and JSON that is JSON."""

import json
import math

import op_benchmark
import pytest

from dlu_mmdet.utils.tables import escape, printable, to_json, to_markdown


@pytest.mark.parametrize(
    'text, expected',
    [
        ('plain_name-3', 'plain_name-3'),
        ('a|b', r'a\|b'),
        ('a\nb', r'a\\nb'),
        ('a\r\nb', r'a\\r\\nb'),
        ('a\\b', r'a\\b'),
        ('a\\|b', r'a\\\|b'),
        ('`x`', r'\`x\`'),
        ('<b>', r'\<b>'),
        ('*a* _b_ [c](d)', r'\*a\* \_b\_ \[c](d)'),
        ('black & white &lt;', r'black & white \&lt;'),
        (' a ', '␣a␣'),
        ('  ', '␣␣'),
        ('\x1b[31mred', r'\\x1b\[31mred'),
        ('a\u2028b\u202ec', r'a\\u2028b\\u202ec'),
        ('Schraube, 螺丝, نمی\u200cدانم', 'Schraube, 螺丝, نمی\u200cدانم'),
    ],
)
def test_any_name_fits_in_a_cell(text, expected):
    assert escape(text) == expected
    head, _, line = to_markdown([text, 'n'], [[text, '1']]).split('\n')
    assert head.split(' | ')[0].strip('| ') == line.split(' | ')[0].strip('| ')
    assert escape(text) in line and line.replace('\\|', '').count('|') == 3


def test_a_mark_beside_a_number_stays():
    assert '| +0.1* |' in to_markdown(['a', 'b'], [['x', '+0.1*']])


def test_what_acts_on_a_terminal_is_made_visible():
    assert printable('\x1b]0;title\x07\n') == r'\x1b]0;title\x07\n'
    assert printable('ü 螺丝') == 'ü 螺丝'


def test_tables_made_line_by_line_escape_names():
    table = op_benchmark._named_table('t', ['a|b'], [(1.0, 1.0)])
    assert r'| a\|b |' in table


def test_json_has_no_nan():
    value = dict(a=[1.5, math.nan, (math.inf, -math.inf)], b=dict(c=math.nan), d='NaN')
    expected = dict(a=[1.5, None, [None, None]], b=dict(c=None), d='NaN')
    assert json.loads(to_json(value)) == expected
