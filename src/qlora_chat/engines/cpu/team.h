// Threads that run one function together, meeting between its phases.
//
// Scope: starting, meeting, sharing out numbered tasks. A meeting takes a fraction of a microsecond while all members have
// a core; a member that waits long yields its core, and between passes the helpers sleep. (OpenMP's own team would do, but
// libgomp stops spinning as soon as torch's team and a second one outnumber the cores.)
#pragma once
#include <immintrin.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class Team {
 public:
  explicit Team(int members) : members_(members), next_(4 * members) {
    for (int id = 1; id < members; id++) helpers_.emplace_back([this, id] { help(id); });
  }
  ~Team() {
    {
      std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& each : helpers_) each.join();
  }
  int members() const { return members_; }

  // work(id) in every member, the caller being 0; returns when all are done.
  void run(const std::function<void(int)>& work) {
    for (int part = 0; part < members_; part++) counters(0)[part].value.store(0);
    {
      std::lock_guard<std::mutex> hold(lock_);
      work_ = &work;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    work(0);
    meet();
  }

  // Nobody goes on before all have come.
  void meet() {
    if (members_ == 1) return;
    const unsigned now = meeting_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      meeting_.store(now + 1, std::memory_order_release);
      return;
    }
    for (int tries = 0; meeting_.load(std::memory_order_acquire) == now; tries++) pause(tries);
  }

  // Tasks 0 to count - 1 in runs of `run`: f(first, end). Each member begins with a part of its own, which it reads in one
  // go, and then helps the others with theirs. Then all meet.
  template <class F>
  void share(int id, int& phase, int count, int run, F&& f) {
    Counter* next = counters(phase);
    if (id == 0)  // nobody has used these for three meetings
      for (int part = 0; part < members_; part++) counters(phase + 1)[part].value.store(0, std::memory_order_relaxed);
    phase++;
    const int runs = (count + run - 1) / run;
    for (int turn = 0; turn < members_; turn++) {
      const int part = (id + turn) % members_;
      const int begin = before(runs, part) * run, end = std::min(count, before(runs, part + 1) * run);
      for (int at; (at = begin + next[part].value.fetch_add(run, std::memory_order_relaxed)) < end;)
        f(at, std::min(end, at + run));
    }
    meet();
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int> value{0};
  };
  Counter* counters(int phase) { return next_.data() + phase % 4 * members_; }
  // Runs in the parts before this one.
  int before(int runs, int part) const { return (runs * part + members_ - 1) / members_; }
  static void pause(int tries) {
    if (tries < 4000) return _mm_pause();
    std::this_thread::yield();
  }
  void help(int id) {
    unsigned seen = 0;
    for (;;) {
      for (int tries = 0; tries < 1000 && round_.load(std::memory_order_acquire) == seen; tries++) _mm_pause();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> hold(lock_);
        wake_.wait(hold, [&] { return round_.load() != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      std::unique_lock<std::mutex> hold(lock_);
      if (closing_) return;
      const auto* work = work_;
      hold.unlock();
      (*work)(id);
      meet();
    }
  }

  const int members_;
  std::vector<std::thread> helpers_;
  std::mutex lock_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  bool closing_ = false;
  const std::function<void(int)>* work_ = nullptr;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> meeting_{0};
  std::vector<Counter> next_;  // (phase % 4, part)
};
