// Threads that run one function together, in phases of numbered tasks.
//
// Scope: starting, sharing out tasks, going on when all of a phase are done. A phase waits for tasks, not for threads: a
// helper that sleeps, or whose core somebody else has, is not waited for unless it holds a task; it catches up later.
// (OpenMP's own team would do, but libgomp stops spinning as soon as torch's team and a second one outnumber the cores.)
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

class Team {
 public:
  explicit Team(int members) : members_(members), claimed_(members) {
    for (int id = 1; id < members; id++) helpers_.emplace_back([this, id] { help(id); });
  }
  ~Team() { close(); }
  int members() const { return members_; }

  // No member is in any work afterwards.
  void close() {
    {
      std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& each : helpers_) each.join();
    helpers_.clear();
  }

  // work(of, id, phase) in the caller, which is 0, and in every helper that comes in time; returns when all phases are
  // done. A late helper may still be on its way through the work then, but gets no task any more.
  void run(void (*work)(void*, int, uint64_t&), void* of) {
    const uint64_t first = (round_.load(std::memory_order_relaxed) + 1) * MOST_PHASES;
    {
      std::lock_guard<std::mutex> hold(lock_);
      work_ = work, of_ = of;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    uint64_t phase = first;
    work(of, 0, phase);
    finished_.store(first + MOST_PHASES - 1, std::memory_order_release);  // nobody waits for phases that this work lacks
  }

  // Tasks 0 to count - 1 in runs of `run`: f(first, end). Each member begins with a part of its own, which it reads in one
  // go, and then helps the others with theirs. Returns when all are done.
  template <class F>
  void share(int id, uint64_t& phase, int count, int run, F&& f) {
    await(begin(id, phase, count, run, f));
  }

  // The same, but returns the phase's number as soon as all tasks are taken. Every task of the next phase must await it,
  // as late as it can: somebody else's last task is then not waited for in idleness.
  template <class F>
  uint64_t begin(int id, uint64_t& phase, int count, int run, F&& f) {
    const uint64_t now = phase++;
    if (finished_.load(std::memory_order_acquire) >= now) return now;  // came too late
    const int runs = (count + run - 1) / run;
    int did = 0;
    for (int turn = 0; turn < members_; turn++) {
      const int part = (id + turn) % members_, begin = before(runs, part), size = before(runs, part + 1) - begin;
      for (int at; (at = claim(part, now, size)) >= 0; did++) f((begin + at) * run, std::min(count, (begin + at + 1) * run));
    }
    std::atomic<int>& done = done_[now % 2].value;
    if (did && done.fetch_add(did, std::memory_order_acq_rel) + did == runs) {
      done.store(0, std::memory_order_relaxed);
      finished_.store(now, std::memory_order_release);
    }
    return now;
  }

  void await(uint64_t phase) const {
    for (int tries = 0; finished_.load(std::memory_order_acquire) < phase; tries++) pause(tries);
  }

 private:
  static constexpr uint64_t MOST_PHASES = 1 << 14;  // of one run: 1,000 layers'
  static constexpr int RUN_BITS = 16;               // more runs in a phase than anything here has
  struct alignas(64) Claimed {
    std::atomic<uint64_t> value{0};  // phase, and runs that are taken
  };
  struct alignas(64) Done {
    std::atomic<int> value{0};  // runs of a phase
  };

  // The next run of a part that nobody has; -1 if there is none, or the phase is over.
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

  // Runs in the parts before this one.
  int before(int runs, int part) const { return (runs * part + members_ - 1) / members_; }

  static void pause(int tries) {
    if (tries < SPINS) return _mm_pause();
    std::this_thread::yield();
  }

  void help(int id) {
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
      uint64_t phase = seen * MOST_PHASES;
      work(of, id, phase);
    }
  }

  static constexpr int SPINS = 20'000;  // about 300 us: what passes between two tokens' passes
  const int members_;
  std::vector<std::thread> helpers_;
  std::mutex lock_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  bool closing_ = false;
  void (*work_)(void*, int, uint64_t&) = nullptr;
  void* of_ = nullptr;
  std::vector<Claimed> claimed_;  // by part
  Done done_[2];  // of a phase, and of the next one, which may begin before it is done
  alignas(64) std::atomic<uint64_t> finished_{0};
};
