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
static void parallel(int parts, const Body& body) {
  struct Shared {
    const Body& body;
    std::atomic<int> next;
    int parts;
    void run() {
      for (int part = next++; part < parts; part = next++) body(part);
    }
  } shared{body, {0}, parts};

  if (parts <= 1) {
    shared.run();
  } else if (pytorch_parallel) {
    pytorch_parallel([](void* data) { static_cast<Shared*>(data)->run(); }, &shared, static_cast<unsigned>(parts), 0);
  } else {
    std::vector<std::thread> others;
    for (int thread = 1; thread < parts; ++thread) others.emplace_back([&shared] { shared.run(); });
    shared.run();
    for (std::thread& thread : others) thread.join();
  }
}
