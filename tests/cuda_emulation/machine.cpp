// A GPU of one processor that watches its programs.
//
// One block runs at a time. Its threads are fibers: each runs until it reaches a
// barrier or a warp operation, then the next one does. The compiler calls __tsan_read4
// and its like before every access (-fsanitize=thread) and __ubsan_handle_* at a
// misaligned one (-fsanitize=alignment,bounds); those are defined here, not in
// libtsan. The first finding ends the launch, before the access that it is about.
//
// Two accesses race if nothing orders them. Time is counted in barriers: a cell
// knows when it was last written and read, and by which thread. What happened
// before the last __syncthreads is ordered, within a warp what happened before the last
// __syncwarp of all its lanes; other blocks never are. A shuffle orders nothing.
#include "machine.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

extern "C" char _end[] __attribute__((visibility("hidden")));  // of the library

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

using Address = uintptr_t;

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kStack = 128 << 10;
constexpr size_t kZone = 4096;  // bytes around an allocation that belong to nobody
constexpr size_t kStaticShared = 48 << 10;
constexpr int kMostShared = 227 << 10;  // of an H100

struct Found {};

// The code that called a function.
#define PC reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// ---- memory --------------------------------------------------------------------

// Who touched a cell: a thread, kLanes + a warp for several of its lanes, or
constexpr uint16_t kLanes = kMostThreads, kMany = 4000, kAtomic = 4001, kCopy = 4002;
constexpr uint32_t kPending = UINT32_MAX;  // time of a copy that is not waited for

struct Cell {
  uint32_t written, read;  // times
  uint32_t write_at, read_at;  // code, from the start of the library
  uint16_t writer, reader;
};
struct Free {
  void operator()(void* memory) const { free(memory); }
};

// An allocation with redzones around it, filled with NaN.
struct Memory {
  std::unique_ptr<char[], Free> room;
  Address begin = 0;
  size_t bytes = 0;
  bool shared = false;
  std::unique_ptr<Cell[], Free> cells;  // as soon as a kernel touches it
  int shift = 2;  // log2 of the bytes of a cell, those of the smallest access

  Memory(size_t bytes, bool shared) : bytes(bytes), shared(shared) {
    const size_t size = (bytes + 2 * kZone + 63) / 64 * 64;
    room.reset(static_cast<char*>(aligned_alloc(64, size)));
    TORCH_CHECK(room, "CUDA emulation: no memory for ", bytes, " bytes");
    begin = reinterpret_cast<Address>(room.get() + kZone);
    poison();
  }
  bool holds(Address address) const { return address - begin < bytes; }
  bool near(Address address) const { return address - begin + kZone < bytes + 2 * kZone; }
  void poison() { memset(reinterpret_cast<void*>(begin), 0xff, bytes); }
  Cell* cells_at(Address address, size_t size) {
    if (!cells || size < size_t(1) << shift) divide(size);
    return cells.get() + ((address - begin) >> shift);
  }
  void divide(size_t size) {
    const int before = shift;
    while (size < size_t(1) << shift) --shift;
    const size_t count = (bytes >> shift) + 1;
    std::unique_ptr<Cell[], Free> divided(
        static_cast<Cell*>(calloc(count, sizeof(Cell))));
    if (cells) {
      for (size_t i = 0; i < count; ++i) divided[i] = cells[i >> (before - shift)];
    }
    cells = std::move(divided);
  }
};

// ---- the machine ---------------------------------------------------------------

enum class State : uint8_t { ready, block, warp, done };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros, batch;
  Address at;
};

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf here;
  bool started = false;
  State state = State::done;
  // of the barrier or warp operation that it waits for
  Place place;
  unsigned mask;
  bool orders;  // the memory of its lanes
  uint64_t value;
  int lane;
  Votes votes;
  std::deque<Copy> copies;
  size_t batch;  // of the copies issued next
};

struct Machine {
  std::mutex mutex;  // one launch, or change of the tensors, at a time
  std::vector<Fiber> fibers{kMostThreads};
  jmp_buf scheduler;
  const Launch* launch = nullptr;
  int threads = 0;
  int64_t block_number = 0;
  int current = 0;         // thread
  Address base = 0;        // of the library
  size_t library_bytes = 0;
  // time, and when the launch, the block, and the intervals between barriers began
  uint32_t now = 1, launched, block, interval, warp_interval[kMostThreads / kWarp];
  std::unique_ptr<Memory> dynamic;
  std::map<const void*, Memory> statics;
  size_t static_bytes = 0;
  std::map<Address, Memory> tensors;  // by begin
  Memory* recent[64] = {};            // tensors by page
  std::unordered_map<const void*, int> granted;  // dynamic shared memory
  cudaError_t error = cudaSuccess;
  // the finding
  std::string what;
  Address at = 0, other = 0;
};
// The code of a kernel runs, not the machine's or the host's.
bool in_kernel = false;
// never freed: tensors may outlive static objects
Machine& machine = *new Machine;

int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value ? atoi(value) : otherwise;
}
int most_shared() { return setting("CUDA_EMULATION_SHARED", kMostShared); }

// The lines of csrc that an instruction was made of, the innermost first.
std::string where(Address pc) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(pc), &info)) return "?";
  char command[4096];
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null",
           info.dli_fname, static_cast<size_t>(pc - 1 - machine.base));
  std::string lines, last = "?";
  if (FILE* pipe = popen(command, "r")) {
    char line[4096];
    while (fgets(line, sizeof line, pipe)) {
      const std::string name(line);
      last = name.substr(name.rfind('/') + 1);
      last = last.substr(0, last.find_first_of(" \n"));
      if (last.find(".cu") == std::string::npos) continue;
      lines += (lines.empty() ? "" : " in ") + last;
    }
    pclose(pipe);
  }
  return lines.empty() ? last : lines;
}
std::string where(const Place& place) {
  const std::string name = place.file_name();
  return name.substr(name.rfind('/') + 1) + ':' + std::to_string(place.line());
}
bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         !strcmp(a.file_name(), b.file_name());
}

// Ends the launch, from a thread or from the scheduler.
[[noreturn]] void found(std::string what, Address at = 0, Address other = 0) {
  machine.what = std::move(what);
  machine.at = at;
  machine.other = other;
  in_kernel = false;
  _longjmp(machine.scheduler, 2);
}

// ---- what an access means ------------------------------------------------------

enum class Kind { read, write, atomic, copy };

// Whether nothing orders an access of this interval before this thread's next one.
inline bool unordered(uint32_t time, uint16_t who) {
  if (who == machine.current) return false;
  const int mine = machine.current / kWarp;
  const int warp = who < kLanes ? who / kWarp : who - kLanes;
  return warp != mine || time >= machine.warp_interval[mine];
}

[[noreturn]] void found_race(const Memory& memory, const char* now, const char* before,
                             Address pc, uint32_t at) {
  found(std::string("race in ") + (memory.shared ? "shared" : "global") + " memory: " +
            now + " after " + before,
        pc, machine.base + at);
}

inline void note_reader(const Memory& memory, Cell& cell, Address pc) {
  const uint16_t me = machine.current;
  uint16_t reader = me;
  if (cell.read >= machine.interval) {
    const int warp = cell.reader < kLanes ? cell.reader / kWarp : cell.reader - kLanes;
    if (warp != me / kWarp) {
      reader = kMany;
    } else if (cell.reader != me && cell.read >= machine.warp_interval[warp]) {
      reader = kLanes + warp;
    }
  } else if (cell.read < machine.block && !memory.shared &&
             cell.read >= machine.launched) {
    cell.reader = kMany;  // keeps its time, of another block
    return;
  }
  cell.reader = reader;
  cell.read = machine.now;
  cell.read_at = static_cast<uint32_t>(pc - machine.base);
}

template <Kind kind>
void touch_cells(Memory& memory, Address address, size_t size, Address pc) {
  constexpr bool reads = kind == Kind::read || kind == Kind::atomic;
  constexpr const char* what = kind == Kind::read ? "a read" : "a write";
  const size_t offset = address - memory.begin;
  if (size > memory.bytes - offset) {
    found(std::string(kind == Kind::read ? "read" : "write") + " across the end of " +
              (memory.shared ? "shared memory" : "a tensor"),
          pc);
  }
  // accesses before this time are of another block or another launch
  const uint32_t block = machine.block;
  const auto from_elsewhere = [&](uint32_t time) {
    return time < block && !memory.shared && time >= machine.launched;
  };
  Cell* cell = memory.cells_at(address, size);
  Cell* const last = memory.cells.get() + ((offset + size - 1) >> memory.shift);
  for (; cell <= last; ++cell) {
    if (reads && memory.shared && cell->written < block) {
      found("read of uninitialized shared memory", pc);
    }
    if ((cell->written >= machine.interval && unordered(cell->written, cell->writer)) ||
        from_elsewhere(cell->written)) {
      if (kind != Kind::atomic || cell->writer != kAtomic) {
        found_race(memory, what,
                   cell->writer == kCopy ? "an asynchronous copy" : "a write", pc,
                   cell->write_at);
      }
    }
    if (kind == Kind::read) {
      note_reader(memory, *cell, pc);
      continue;
    }
    if ((cell->read >= machine.interval && unordered(cell->read, cell->reader)) ||
        from_elsewhere(cell->read)) {
      found_race(memory, what, "a read", pc, cell->read_at);
    }
    cell->written = kind == Kind::copy ? kPending : machine.now;
    cell->writer = kind == Kind::copy     ? kCopy
                   : kind == Kind::atomic ? kAtomic
                                          : machine.current;
    cell->write_at = static_cast<uint32_t>(pc - machine.base);
  }
}

Memory* tensor_of(Address address) {
  Memory*& recent = machine.recent[(address >> 12) % 64];
  if (recent && recent->holds(address)) return recent;
  auto after = machine.tensors.upper_bound(address);
  if (after == machine.tensors.begin()) return nullptr;
  Memory& memory = std::prev(after)->second;
  return memory.holds(address) ? recent = &memory : nullptr;
}

template <Kind kind>
void touch(const void* pointer, size_t size, Address pc) {
  if (!in_kernel) return;
  const auto address = reinterpret_cast<Address>(pointer);
  if (machine.dynamic->holds(address)) {
    return touch_cells<kind>(*machine.dynamic, address, size, pc);
  }
  const auto stack =
      reinterpret_cast<Address>(machine.fibers[machine.current].stack.get());
  if (address - stack < kStack) return;
  if (Memory* tensor = tensor_of(address)) {
    return touch_cells<kind>(*tensor, address, size, pc);
  }
  const auto arguments = reinterpret_cast<Address>(machine.launch->arguments);
  if (kind == Kind::read && (address - arguments < machine.launch->arguments_bytes ||
                             address - machine.base < machine.library_bytes)) {
    return;  // or a constant
  }
  bool near = machine.dynamic->near(address);
  for (auto& [key, memory] : machine.statics) {
    if (memory.holds(address)) return touch_cells<kind>(memory, address, size, pc);
    near = near || memory.near(address);
  }
  found(std::string(kind == Kind::read ? "read" : "write") + " outside of " +
            (near ? "shared memory" : "any tensor"),
        pc);
}

// ---- fibers --------------------------------------------------------------------

void suspend(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  in_kernel = false;
  fiber.state = state;
  if (_setjmp(fiber.here) == 0) _longjmp(machine.scheduler, 1);
  in_kernel = true;
}

void live() {
  for (;;) {
    Fiber& fiber = machine.fibers[machine.current];
    fiber.batch = 0;
    in_kernel = true;
    machine.launch->call(machine.launch->arguments);
    if (!fiber.copies.empty()) {
      found("an asynchronous copy that is never waited for", fiber.copies.front().at);
    }
    suspend(State::done);
  }
}

void resume(int thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  const unsigned t = thread;
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  const int back = _setjmp(machine.scheduler);
  if (back == 2) throw Found{};
  if (back == 1) return;
  // contexts only start a fiber: a switch of them is a system call
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, live, 0);
  setcontext(&fiber.start);
}

[[noreturn]] void found_divergence(int waiting, int missing) {
  const Fiber &at = machine.fibers[waiting], &other = machine.fibers[missing];
  machine.current = missing;
  machine.what = (at.state == State::block ? "barrier of " : "warp operation of ") +
                 where(at.place) + " is missed by a thread that " +
                 (other.state == State::done ? "has returned"
                                             : "waits at " + where(other.place));
  machine.at = machine.other = 0;
  throw Found{};
}

// The lanes that wait for one operation go on together; false if none can.
bool complete_warp(int first, int last) {
  int waiting = -1, missing = -1;
  for (int t = first; t < last; ++t) {
    Fiber& fiber = machine.fibers[t];
    if (fiber.state != State::warp) continue;
    unsigned lanes = 0, live = 0;
    bool complete = true;
    for (int u = first; u < last; ++u) {
      const Fiber& other = machine.fibers[u];
      if (other.state != State::done) live |= 1u << (u - first);
      if (!(fiber.mask >> (u - first) & 1)) continue;
      if (other.state != State::warp || other.mask != fiber.mask ||
          !same(other.place, fiber.place)) {
        complete = false;
        waiting = t;
        missing = u;
      } else if (other.value) {
        lanes |= 1u << (u - first);
      }
    }
    if (!complete) continue;
    for (int u = first; u < last; ++u) {
      if (!(fiber.mask >> (u - first) & 1)) continue;
      Fiber& other = machine.fibers[u];
      machine.current = u;
      if (!(fiber.mask >> other.lane & 1) || first + other.lane >= last) {
        machine.what = "warp operation of " + where(fiber.place) + " reads lane " +
                       std::to_string(other.lane) + ", which does not take part";
        machine.at = machine.other = 0;
        throw Found{};
      }
      other.votes = {machine.fibers[first + other.lane].value, lanes};
    }
    for (int u = first; u < last; ++u) {
      if (fiber.mask >> (u - first) & 1) machine.fibers[u].state = State::ready;
    }
    if (fiber.orders && (fiber.mask & live) == live) {
      machine.warp_interval[first / kWarp] = ++machine.now;
    }
    return true;
  }
  if (waiting >= 0) found_divergence(waiting, missing);
  return false;
}

void run_block(std::mt19937& random, int order) {
  const int threads = machine.threads;
  machine.block = machine.interval = ++machine.now;
  std::fill(std::begin(machine.warp_interval), std::end(machine.warp_interval),
            machine.now);
  machine.dynamic->poison();
  for (auto& [key, memory] : machine.statics) memory.poison();
  for (int t = 0; t < threads; ++t) machine.fibers[t].state = State::ready;
  std::vector<int> warps((threads + kWarp - 1) / kWarp), lanes(kWarp);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  for (;;) {
    if (order == 1) {
      std::sort(warps.rbegin(), warps.rend());
      std::sort(lanes.rbegin(), lanes.rend());
    } else if (order > 1) {
      std::shuffle(warps.begin(), warps.end(), random);
      std::shuffle(lanes.begin(), lanes.end(), random);
    }
    for (int warp : warps) {
      const int first = warp * kWarp, last = std::min(first + kWarp, threads);
      do {
        for (int lane : lanes) {
          const int t = first + lane;
          if (t < last && machine.fibers[t].state == State::ready) resume(t);
        }
      } while (complete_warp(first, last));
    }
    int waiting = -1, missing = -1;
    for (int t = 0; t < threads; ++t) {
      if (machine.fibers[t].state == State::block) waiting = t;
    }
    if (waiting < 0) return;  // all have returned
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = machine.fibers[t];
      if (fiber.state != State::block ||
          !same(fiber.place, machine.fibers[waiting].place)) {
        missing = t;
      }
    }
    if (missing >= 0) found_divergence(waiting, missing);
    for (int t = 0; t < threads; ++t) machine.fibers[t].state = State::ready;
    machine.interval = ++machine.now;
    std::fill(std::begin(machine.warp_interval), std::end(machine.warp_interval),
              machine.now);
  }
}

// ---- allocations ---------------------------------------------------------------

// its base's allocate is const before torch 2.3, which has no copy_data either
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) { return std::as_const(*this).allocate(bytes); }
  c10::DataPtr allocate(size_t bytes) const {
    if (bytes == 0) return {nullptr, nullptr, &drop, c10::Device(c10::kCPU)};
    const std::lock_guard<std::mutex> lock(machine.mutex);
    Memory memory(bytes, false);
    const Address begin = memory.begin;
    machine.tensors.emplace(begin, std::move(memory));
    void* data = reinterpret_cast<void*>(begin);
    return {data, data, &drop, c10::Device(c10::kCPU)};
  }
  static void drop(void* data) {
    if (!data) return;
    const std::lock_guard<std::mutex> lock(machine.mutex);
    std::fill(std::begin(machine.recent), std::end(machine.recent), nullptr);
    machine.tensors.erase(reinterpret_cast<Address>(data));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, size_t bytes) const {
    std::memcpy(to, from, bytes);
  }
};

const bool installed = [] {
  c10::SetCPUAllocator(new Allocator, 200);
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&most_shared), &info);
  machine.base = reinterpret_cast<Address>(info.dli_fbase);
  machine.library_bytes = reinterpret_cast<Address>(_end) - machine.base;
  return true;
}();

}  // namespace

// ---- a launch ------------------------------------------------------------------

int guards = 0;

void run(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(machine.mutex);
  const auto check = [](bool right, const auto&... what) {
    TORCH_CHECK(right, "CUDA emulation: ", what...);
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  const int64_t threads = static_cast<int64_t>(block.x) * block.y * block.z;
  const auto granted = machine.granted.find(launch.kernel);
  const int64_t most = std::max<int64_t>(
      kStaticShared, granted == machine.granted.end() ? 0 : granted->second);
  check(guards > 0, "a launch outside of a device guard");
  check(launch.stream == current_stream(), "a launch that is not on the current stream");
  check(threads > 0 && threads <= kMostThreads && block.z <= 64, "a block of ", threads,
        " threads");
  check(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < 1u << 31 &&
            grid.y < 1u << 16 && grid.z < 1u << 16,
        "a grid of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  check(static_cast<int64_t>(launch.bytes) <= most, launch.bytes,
        " bytes of dynamic shared memory, where the kernel may have ", most);
  check(machine.now < kPending / 2, "the clock of this process has run out");

  machine.launch = &launch;
  machine.threads = static_cast<int>(threads);
  machine.launched = ++machine.now;
  machine.dynamic.reset(new Memory(launch.bytes, true));
  machine.statics.clear();
  machine.static_bytes = 0;
  gridDim = {grid.x, grid.y, grid.z};
  blockDim = {block.x, block.y, block.z};
  const int order = setting("CUDA_EMULATION_ORDER", 0);
  std::mt19937 random(order);
  std::vector<int64_t> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order == 1) std::reverse(blocks.begin(), blocks.end());
  if (order > 1) std::shuffle(blocks.begin(), blocks.end(), random);
  try {
    for (int64_t i : blocks) {
      machine.block_number = i;
      blockIdx = {static_cast<unsigned>(i % grid.x),
                  static_cast<unsigned>(i / grid.x % grid.y),
                  static_cast<unsigned>(i / grid.x / grid.y)};
      run_block(random, order);
    }
  } catch (Found) {
    for (auto& fiber : machine.fibers) {
      fiber.started = false;  // begins anew, wherever it was
      fiber.copies.clear();
    }
    std::string text = machine.what;
    if (machine.at) text += " at " + where(machine.at);
    if (machine.other) text += ", before at " + where(machine.other);
    check(false, text, " (block ", machine.block_number, ", thread ", machine.current,
          ")");
  }
}

void wait_for_block(const Place& place) {
  machine.fibers[machine.current].place = place;
  suspend(State::block);
}

static Votes join(unsigned mask, uint64_t value, int lane, const Place& place,
                  bool orders) {
  Fiber& fiber = machine.fibers[machine.current];
  if (!(mask >> emulation::lane() & 1)) {
    found("warp operation of " + where(place) + " whose mask leaves out its own lane");
  }
  fiber.place = place;
  fiber.mask = mask;
  fiber.orders = orders;
  fiber.value = value;
  fiber.lane = lane;
  suspend(State::warp);
  return fiber.votes;
}

Votes exchange(unsigned mask, uint64_t value, int lane, const Place& place) {
  return join(mask, value, lane, place, false);
}

void wait_for_warp(unsigned mask, const Place& place) {
  join(mask, 0, lane(), place, true);
}

int lane() { return machine.current % kWarp; }

void trap() { found("__trap"); }

char* dynamic_shared_memory() {
  return reinterpret_cast<char*>(machine.dynamic->begin);
}

char* static_shared_memory(const void* key, size_t bytes, size_t alignment) {
  auto at = machine.statics.find(key);
  if (at == machine.statics.end()) {
    machine.static_bytes += (bytes + alignment - 1) / alignment * alignment;
    if (machine.static_bytes > kStaticShared ||
        machine.static_bytes + machine.launch->bytes > size_t(most_shared())) {
      found(std::to_string(machine.static_bytes) + " bytes of static shared memory");
    }
    at = machine.statics.emplace(key, Memory(bytes, true)).first;
  }
  return reinterpret_cast<char*>(at->second.begin);
}

// ---- asynchronous copies -------------------------------------------------------

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
  Fiber& fiber = machine.fibers[machine.current];
  const auto places = reinterpret_cast<Address>(to) | reinterpret_cast<Address>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes || zeros > bytes) {
    found("asynchronous copy of " + std::to_string(bytes) + " bytes, misaligned or of "
          "a size that there is none of", PC);
  }
  if (zeros < bytes) touch<Kind::read>(from, bytes - zeros, PC);
  touch<Kind::copy>(to, bytes, PC);
  fiber.copies.push_back({to, from, bytes, zeros, fiber.batch, PC});
}

void commit_copies() { ++machine.fibers[machine.current].batch; }

// The bytes arrive as late as they may: a read before the wait sees the old ones.
void wait_for_copies(size_t but) {
  Fiber& fiber = machine.fibers[machine.current];
  while (!fiber.copies.empty() && fiber.copies.front().batch + but < fiber.batch) {
    const Copy copy = fiber.copies.front();
    fiber.copies.pop_front();
    const size_t bytes = copy.bytes - copy.zeros;
    if (bytes) touch<Kind::read>(copy.from, bytes, copy.at);
    memcpy(copy.to, copy.from, bytes);
    memset(static_cast<char*>(copy.to) + bytes, 0, copy.zeros);
    const auto to = reinterpret_cast<Address>(copy.to);
    Memory* memory = machine.dynamic.get();
    for (auto& [key, other] : machine.statics) {
      if (other.holds(to)) memory = &other;
    }
    if (!memory->holds(to)) found("asynchronous copy to global memory", copy.at);
    Cell* cell = memory->cells_at(to, copy.bytes);
    for (size_t i = 0; i < copy.bytes >> memory->shift; ++i) {
      cell[i].written = machine.now;
      cell[i].writer = machine.current;
    }
  }
}

// ---- the runtime ---------------------------------------------------------------

cudaStream_t current_stream() { return reinterpret_cast<cudaStream_t>(&guards); }

cudaError_t last_error(bool reset) {
  return reset ? std::exchange(machine.error, cudaSuccess) : machine.error;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > most_shared()) return machine.error = cudaErrorInvalidValue;
  machine.granted[kernel] = value;
  return cudaSuccess;
}

int device_attribute(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: return kMostThreads;
    case cudaDevAttrMaxSharedMemoryPerBlock: return kStaticShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return most_shared();
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return most_shared() + 1024;
    case cudaDevAttrWarpSize: return kWarp;
    case cudaDevAttrMultiProcessorCount:
      return setting("CUDA_EMULATION_PROCESSORS", 132);
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
  }
  return 0;
}

}  // namespace emulation

// ---- what the compiler calls ---------------------------------------------------

#define ATOMIC_ADD(T)                                                              \
  T atomicAdd(T* to, T value) {                                                    \
    emulation::touch<emulation::Kind::atomic>(to, sizeof(T), PC);                  \
    return std::exchange(*to, *to + value);                                        \
  }
ATOMIC_ADD(float)
ATOMIC_ADD(double)
ATOMIC_ADD(int)
ATOMIC_ADD(unsigned)
ATOMIC_ADD(unsigned long long)

#define HOOK(name, size, kind)                                                     \
  void __tsan_##name(void* p) { emulation::touch<emulation::Kind::kind>(p, size, PC); }
#define HOOKS(size)                                                                \
  HOOK(read##size, size, read)                                                     \
  HOOK(write##size, size, write)                                                   \
  HOOK(unaligned_read##size, size, read)                                           \
  HOOK(unaligned_write##size, size, write)
// the reference counts of torch's headers
#define HOST_ATOMICS(bits, T)                                                      \
  T __tsan_atomic##bits##_load(const T* p, int) {                                  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                   \
  }                                                                                \
  void __tsan_atomic##bits##_store(T* p, T v, int) {                               \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                      \
  }                                                                                \
  T __tsan_atomic##bits##_exchange(T* p, T v, int) {                               \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                            \
  }                                                                                \
  T __tsan_atomic##bits##_fetch_add(T* p, T v, int) {                              \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                             \
  }                                                                                \
  T __tsan_atomic##bits##_fetch_sub(T* p, T v, int) {                              \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                             \
  }                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* c, T v, int, int) {   \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST,           \
                                       __ATOMIC_SEQ_CST);                          \
  }                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(T* p, T* c, T v, int, int) {     \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST,           \
                                       __ATOMIC_SEQ_CST);                          \
  }

struct Source {
  const char* file;
  uint32_t line, column;
};
static void undefined(const char* what, const Source* source) {
  if (!emulation::in_kernel) return;
  const std::string file = source->file;
  emulation::found(what + file.substr(file.rfind('/') + 1) + ':' +
                   std::to_string(source->line));
}

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOST_ATOMICS(8, uint8_t)
HOST_ATOMICS(32, uint32_t)
HOST_ATOMICS(64, uint64_t)
void __tsan_read_range(void* p, size_t size) {
  emulation::touch<emulation::Kind::read>(p, size, PC);
}
void __tsan_write_range(void* p, size_t size) {
  emulation::touch<emulation::Kind::write>(p, size, PC);
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __ubsan_handle_type_mismatch_v1(const Source* source, uintptr_t) {
  undefined("misaligned access at ", source);
}
void __ubsan_handle_out_of_bounds(const Source* source, uintptr_t) {
  undefined("index outside of an array at ", source);
}
}
