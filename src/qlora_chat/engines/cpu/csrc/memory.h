// Zeroed memory: buffers for intermediate results, and an arena of huge pages for weights, in the order of packing.
//
// Scope: allocation and ownership.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

constexpr size_t HUGE_PAGE = size_t(2) << 20, LINE = 64;

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

inline std::shared_ptr<uint8_t> zeros(size_t bytes) {
  const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
  bytes = (std::max(bytes, size_t(1)) + page - 1) / page * page;
  auto* data = (uint8_t*)std::aligned_alloc(page, bytes);
  if (!data) throw std::bad_alloc();
  std::shared_ptr<uint8_t> owned(data, FreeDeleter{});
#ifdef MADV_HUGEPAGE
  if (page == HUGE_PAGE) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, bytes);
  return owned;
}

// Allocates consecutive parts of large blocks. A model's matrices are smaller than a huge page or end in the middle of one:
// allocated separately they would lie in small pages, or waste a megabyte each.
class WeightArena {
 public:
  std::shared_ptr<uint8_t> allocate(size_t bytes) {
    bytes = (bytes + LINE - 1) / LINE * LINE;
    std::lock_guard<std::mutex> guard(lock_);
    auto block = block_.lock();  // freed with the last buffer in it
    if (!block || used_ + bytes > size_) {
      size_ = std::max(bytes, 16 * HUGE_PAGE);
      block = zeros(size_);
      block_ = block, used_ = 0;
    }
    const size_t at = used_;
    used_ += bytes;
    return {block, block.get() + at};
  }

 private:
  std::mutex lock_;
  std::weak_ptr<uint8_t> block_;
  size_t size_ = 0, used_ = 0;
};

template <class T>
struct Buffer {
  T* data = nullptr;
  size_t size = 0;
  Buffer() = default;
  explicit Buffer(size_t n) : Buffer(n, zeros(n * sizeof(T))) {}
  static Buffer in_arena(size_t n) {
    static WeightArena arena;
    return Buffer(n, arena.allocate(n * sizeof(T)));
  }

 private:
  std::shared_ptr<uint8_t> owner_;
  Buffer(size_t n, std::shared_ptr<uint8_t> owner) : data((T*)owner.get()), size(n), owner_(std::move(owner)) {}
};
