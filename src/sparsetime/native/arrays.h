// Memory of the arrays that a stream hands out. What the caller has dropped is handed out again: a fresh array of a map as large as the
// frame costs more than what is written to it, since the system clears its pages first.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "memory.h"

namespace sparsetime {

class Arrays : public std::enable_shared_from_this<Arrays> {
  public:
    // Keeps at most `spare` arrays of one length that nobody holds.
    explicit Arrays(size_t spare) : most_(spare) {}

    // One array, and what keeps the rest alive while somebody holds it. Deleting it gives the memory back.
    class Array {
      public:
        Array(std::shared_ptr<Arrays> owner, float* data, size_t length)
            : data(data), owner_(std::move(owner)), length_(length) {}
        ~Array() { owner_->give_back(data, length_); }
        Array(const Array&) = delete;
        Array& operator=(const Array&) = delete;
        float* const data;

      private:
        std::shared_ptr<Arrays> owner_;
        size_t length_;
    };

    ~Arrays() {
        for (const auto& [length, list] : spare_)
            for (float* data : list) release(data, length * sizeof(float));
    }

    // Of any contents.
    std::unique_ptr<Array> take(size_t length) {
        float* data = nullptr;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            std::vector<float*>& list = spare_[length];
            list.reserve(most_);  // giving back must not fail
            if (!list.empty()) {
                data = list.back();
                list.pop_back();
            }
        }
        if (!data) data = static_cast<float*>(allocate(length * sizeof(float)));
        return std::make_unique<Array>(shared_from_this(), data, length);
    }

  private:
    void give_back(float* data, size_t length) noexcept {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            std::vector<float*>& list = spare_[length];
            if (list.size() < most_) {
                list.push_back(data);
                return;
            }
        }
        release(data, length * sizeof(float));
    }

    const size_t most_;
    std::mutex mutex_;
    std::map<size_t, std::vector<float*>> spare_;  // by length
};

}  // namespace sparsetime
