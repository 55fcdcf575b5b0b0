// Parts of a loop on the threads that PyTorch has.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// The entry of PyTorch's own OpenMP library (GCC's name, which Intel's and LLVM's have too), so that no second pool of
// threads waits beside PyTorch's. Threads of this file's own where there is none.
typedef void (*Parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
extern Parallel pytorch_parallel;

// body(part) for every part in [0, parts), each on whichever thread is free. What a part computes depends on its number
// alone, so two runs with as many parts are equal.
template <typename Body>
static void parallel(int64_t threads, int64_t parts, const Body& body) {
  struct Shared {
    const Body& body;
    std::atomic<int64_t> next;
    int64_t parts;
    void run() {
      for (int64_t part = next++; part < parts; part = next++) body(part);
    }
  } shared{body, {0}, parts};

  threads = threads < parts ? threads : parts;
  if (threads <= 1) {
    shared.run();
  } else if (pytorch_parallel) {
    pytorch_parallel([](void* data) { static_cast<Shared*>(data)->run(); }, &shared, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back([&shared] { shared.run(); });
    shared.run();
    for (std::thread& thread : others) thread.join();
  }
}

// A part for every thread.
template <typename Body>
static void parallel(int64_t threads, const Body& body) {
  parallel(threads, threads, body);
}
