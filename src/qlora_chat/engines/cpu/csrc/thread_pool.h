// Threads that run one function together, in phases of numbered tasks.
//
// Scope: starting threads, distributing tasks, continuing when all tasks of a phase are done. A phase waits for tasks, not for
// threads: a thread that sleeps, or has lost its core, delays nobody unless it has claimed a task, and catches up later.
// (OpenMP would do, but libgomp stops spinning as soon as torch's team and a second one outnumber the cores.)
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
 public:
  explicit ThreadPool(int workers) : workers_(workers), claimed_(workers) {
    for (int id = 1; id < workers; id++) threads_.emplace_back([this, id] { work_loop(id); });
  }
  ~ThreadPool() { close(); }
  int workers() const { return workers_; }

  // Ends all threads; none runs any work afterwards.
  void close() {
    {
      std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& each : threads_) each.join();
    threads_.clear();
  }

  // Runs work(of, id, phase) in the caller, as id 0, and in every thread that wakes in time; returns when all phases are
  // done. A late thread may still be passing through the work then, but can claim no task any more.
  void run(void (*work)(void*, int, uint64_t&), void* of) {
    const uint64_t first = (round_.load(std::memory_order_relaxed) + 1) * MAX_PHASES;
    {
      std::lock_guard<std::mutex> hold(lock_);
      work_ = work, of_ = of;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    uint64_t phase = first;
    work(of, 0, phase);
    finished_.store(first + MAX_PHASES - 1, std::memory_order_release);  // phases that this work does not have
  }

  // Calls f(first, end) for tasks 0 to count - 1 in runs of `run`. Each thread begins with a contiguous part of its own and
  // then helps the others. Returns when all tasks are done.
  template <class F>
  void parallel_for(int id, uint64_t& phase, int count, int run, F&& f) {
    wait(begin_phase(id, phase, count, run, f));
  }

  // The same, but returns the phase's number as soon as all tasks are claimed. Every task of the next phase must wait for
  // that number, as late as it can, so that no thread is idle during the last task of another.
  template <class F>
  uint64_t begin_phase(int id, uint64_t& phase, int count, int run, F&& f) {
    const uint64_t now = phase++;
    if (finished_.load(std::memory_order_acquire) >= now) return now;  // this thread is too late
    const int runs = (count + run - 1) / run;
    int completed = 0;
    for (int offset = 0; offset < workers_; offset++) {
      const int part = (id + offset) % workers_, first = before(runs, part), size = before(runs, part + 1) - first;
      for (int at; (at = claim(part, now, size)) >= 0; completed++)
        f((first + at) * run, std::min(count, (first + at + 1) * run));
    }
    std::atomic<int>& done = done_[now % 2].value;
    if (completed && done.fetch_add(completed, std::memory_order_acq_rel) + completed == runs) {
      done.store(0, std::memory_order_relaxed);
      finished_.store(now, std::memory_order_release);
    }
    return now;
  }

  void wait(uint64_t phase) const {
    for (int tries = 0; finished_.load(std::memory_order_acquire) < phase; tries++) pause(tries);
  }

 private:
  static constexpr uint64_t MAX_PHASES = 1 << 14;  // of one run: enough for 1,000 layers
  static constexpr int RUN_BITS = 16;              // runs of a phase: more than any here has
  struct alignas(64) Claimed {
    std::atomic<uint64_t> value{0};  // phase, and number of claimed runs
  };
  struct alignas(64) Done {
    std::atomic<int> value{0};  // completed runs of a phase
  };

  // Claims the next free run of a part; -1 if there is none, or the phase is over.
  int claim(int part, uint64_t phase, int size) {
    std::atomic<uint64_t>& claimed = claimed_[part].value;
    uint64_t seen = claimed.load(std::memory_order_relaxed);
    for (;;) {
      if (seen >> RUN_BITS > phase) return -1;
      const int at = seen >> RUN_BITS == phase ? int(seen & ((1 << RUN_BITS) - 1)) : 0;
      if (at >= size) return -1;
      if (claimed.compare_exchange_weak(seen, phase << RUN_BITS | uint64_t(at + 1), std::memory_order_acq_rel)) return at;
    }
  }

  // Number of runs in the parts before this one.
  int before(int runs, int part) const { return (runs * part + workers_ - 1) / workers_; }

  static void pause(int tries) {
    if (tries < SPINS) return _mm_pause();
    std::this_thread::yield();
  }

  void work_loop(int id) {
    uint64_t seen = 0;
    for (;;) {
      for (int tries = 0; tries < SPINS && round_.load(std::memory_order_acquire) == seen; tries++) _mm_pause();
      std::unique_lock<std::mutex> hold(lock_);
      wake_.wait(hold, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (closing_) return;
      const auto work = work_;
      void* const of = of_;
      hold.unlock();
      uint64_t phase = seen * MAX_PHASES;
      work(of, id, phase);
    }
  }

  static constexpr int SPINS = 20'000;  // about 300 us, the time between the passes of two tokens
  const int workers_;
  std::vector<std::thread> threads_;
  std::mutex lock_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  bool closing_ = false;
  void (*work_)(void*, int, uint64_t&) = nullptr;
  void* of_ = nullptr;
  std::vector<Claimed> claimed_;  // by part
  Done done_[2];                  // of a phase and of the next one, which may begin before the first is done
  alignas(64) std::atomic<uint64_t> finished_{0};
};
