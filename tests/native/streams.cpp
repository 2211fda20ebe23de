// Two streams of one program in two threads, each with a pool of two, for ThreadSanitizer: without Python, whose interpreter
// it cannot see into. All numbers are small integers, so that every order of the sums gives the same bits.

#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "stream.h"

using namespace sparsetime;

namespace {

constexpr int CHANNELS = 3, HEIGHT = 24, WIDTH = 40, FRAMES = 40;

// Tensors stay where they are while a program is made of them.
struct Network {
    std::vector<std::vector<int64_t>> shapes;
    std::vector<OpSpec> ops;
    std::vector<std::unique_ptr<std::vector<float>>> floats;
    std::vector<std::unique_ptr<std::vector<int32_t>>> integers;
    std::vector<std::unique_ptr<std::vector<int8_t>>> bytes;
    std::mt19937 random{1};

    TensorView tensor(std::vector<int64_t> shape, int low, int high) {
        TensorView view;
        view.shape = std::move(shape);
        auto data = std::make_unique<std::vector<float>>(size_t(view.size()));
        for (float& x : *data) x = float(std::uniform_int_distribution<int>(low, high)(random));
        view.floats = data->data();
        floats.push_back(std::move(data));
        return view;
    }
    TensorView table(std::vector<int64_t> shape, std::vector<int32_t> data) {
        TensorView view;
        view.shape = std::move(shape);
        integers.push_back(std::make_unique<std::vector<int32_t>>(std::move(data)));
        view.integers = integers.back()->data();
        return view;
    }
    TensorView weights(std::vector<int64_t> shape) {
        TensorView view;
        view.shape = std::move(shape);
        bytes.push_back(std::make_unique<std::vector<int8_t>>(size_t(view.size())));
        for (int8_t& x : *bytes.back()) x = int8_t(std::uniform_int_distribution<int>(-100, 100)(random));
        view.bytes = bytes.back()->data();
        return view;
    }
    // Keeps the value of the last operation as codes.
    void code(float step, int zero, bool moved = false) {
        OpSpec& op = ops.back();
        op.coded = true;
        op.code_step = step;
        op.code_zero = zero;
        if (!moved) op.threshold = table({1}, {1});
    }
    // Appends an operation; returns the number of its value.
    int add(const std::string& kind, std::vector<int> inputs, std::vector<int64_t> shape, Act act, const std::string& codec,
            float step) {
        OpSpec op{};
        op.kind = kind;
        op.name = kind + std::to_string(ops.size());
        op.inputs = std::move(inputs);
        op.outputs = {int(shapes.size())};
        op.act = act;
        op.act_a = 0;
        op.act_b = 6;
        op.codec = codec;
        op.low = -1e9f;
        op.high = 1e9f;
        op.opaque = {false};
        if (!codec.empty()) {
            op.step = tensor({1}, 1, 1);
            floats.back()->front() = step;
        }
        shapes.push_back(std::move(shape));
        ops.push_back(std::move(op));
        return ops.back().outputs[0];
    }
    int convolution(std::vector<int> inputs, int out, int kernel, int stride, int groups, const std::string& codec) {
        const std::vector<int64_t> x = shapes[size_t(inputs[0])];
        const int64_t before = kernel / 2, height = (x[2] - 1) / stride + 1, width = (x[3] - 1) / stride + 1;
        const int value = add("conv2d", std::move(inputs), {1, out, height, width}, Act::clamp, codec, 2);
        OpSpec& op = ops.back();
        const double p = double(before);
        op.numbers = {{"stride", {double(stride), double(stride)}}, {"padding", {p, p, p, p}}, {"dilation", {1, 1}},
                      {"groups", {double(groups)}}};
        op.tensors["weight"] = tensor({out, x[1] / groups, kernel, kernel}, -1, 1);
        op.tensors["bias"] = tensor({out}, -3, 3);
        return value;
    }
};

std::shared_ptr<const Program> make() {
    Network n;
    const int image = n.add("input", {}, {1, CHANNELS, HEIGHT, WIDTH}, Act::none, "exact", 2);
    const int stem = n.convolution({image}, 32, 3, 1, 1, "exact");
    const int depthwise = n.convolution({stem}, 32, 3, 1, 32, "hold");
    const int joined = n.convolution({depthwise, stem}, 32, 1, 1, 1, "residual");
    const int pooled = n.add("max_pool2d", {joined}, {1, 32, HEIGHT / 2, WIDTH / 2}, Act::none, "", 1);
    std::vector<int32_t> rows, columns;
    for (int i = 0; i < HEIGHT / 2; ++i) rows.insert(rows.end(), {2 * i, 2 * i + 2});
    for (int i = 0; i < WIDTH / 2; ++i) columns.insert(columns.end(), {2 * i, 2 * i + 2});
    n.ops.back().tensors["rows"] = n.table({HEIGHT / 2, 2}, rows);
    n.ops.back().tensors["columns"] = n.table({WIDTH / 2, 2}, columns);
    n.ops.back().numbers["dilation"] = {1, 1};
    const int last = n.convolution({pooled}, 48, 3, 2, 1, "exact");
    const int doubled = n.add("add", {last, last}, n.shapes[size_t(last)], Act::none, "", 1);
    n.ops.back().numbers["coefficients"] = {1, 1};
    return std::make_shared<Program>(n.shapes, n.ops, std::vector<int>{doubled});
}

// The same in int8: codes, a residual, a move of bytes, floats at the end.
std::shared_ptr<const Program> make_int8() {
    Network n;
    const int image = n.add("input", {}, {1, CHANNELS, HEIGHT, WIDTH}, Act::none, "", 1);
    n.code(0.25f, 10);
    const auto convolution = [&](std::vector<int> inputs, int out, int kernel, int groups) {
        const int value = n.convolution(std::move(inputs), out, kernel, 1, groups, "");
        OpSpec& op = n.ops.back();
        const std::vector<int64_t> shape = op.tensors["weight"].shape;
        op.tensors["weight"] = n.weights(shape);
        op.tensors["weight_step"] = n.tensor({out}, 1, 1);
        for (float& x : *n.floats.back()) x = 0.01f;
        op.act_b = __builtin_inff();
        return value;
    };
    const int stem = convolution({image}, 32, 3, 1);
    n.code(0.5f, 0);
    const int depthwise = convolution({stem}, 32, 3, 32);
    n.code(0.5f, 0);
    const int joined = convolution({depthwise, stem}, 32, 1, 1);
    n.code(0.5f, 0);
    const int both = n.add("cat", {joined, joined}, {1, 64, HEIGHT, WIDTH}, Act::none, "", 1);
    n.ops.back().numbers["axis"] = {1};
    n.code(0.5f, 0, true);
    const int last = convolution({both}, 48, 3, 1);
    return std::make_shared<Program>(n.shapes, n.ops, std::vector<int>{last}, true);
}

// Of a moving block on noise that changes here and there; every tenth frame is new everywhere.
std::vector<float> frame_of(int seed, int t) {
    std::vector<float> frame(size_t(CHANNELS) * HEIGHT * WIDTH);
    std::mt19937 ground(unsigned(seed + t / 10)), noise(unsigned(1000 * seed + t));
    for (float& x : frame) x = float(int(ground() % 16));
    for (int i = 0; i < 40; ++i) frame[noise() % frame.size()] = float(int(noise() % 16));
    for (int c = 0; c < CHANNELS; ++c)
        for (int y = 5; y < 12; ++y)
            for (int x = t % 30; x < t % 30 + 6; ++x) frame[size_t((c * HEIGHT + y) * WIDTH + x)] = 20;
    return frame;
}

std::vector<float> play(const std::shared_ptr<const Program>& program, int seed, int threads) {
    Stream stream(program, threads, [](int) {});
    const Value& out = program->values[size_t(program->outputs[0])];
    const size_t size = size_t(out.map.pixels()) * size_t(out.map.channels);
    std::vector<float> all(size * FRAMES);
    for (int t = 0; t < FRAMES; ++t) {
        if (t == 25) stream.refresh();
        const bool keep = t < 30 || t > 32;
        if (t >= 30 && t <= 33) stream.reset();
        const std::vector<float> frame = frame_of(seed, t);
        stream.run({frame.data(), nullptr, HEIGHT * WIDTH, WIDTH, 1}, {}, keep);
        stream.read(program->outputs[0], all.data() + size * size_t(t));
    }
    return all;
}

bool agree(const char* name, const std::shared_ptr<const Program>& program) {
    const std::vector<float> expected[2] = {play(program, 7, 1), play(program, 8, 1)};
    std::vector<float> found[2];
    std::thread other([&] { found[1] = play(program, 8, 2); });
    found[0] = play(program, 7, 2);
    other.join();
    size_t moving = 0;
    for (size_t i = 0; i < found[0].size(); ++i) moving += found[0][i] != found[1][i];
    if (found[0] != expected[0] || found[1] != expected[1] || moving == 0) {
        std::printf("streams: outputs of the %s plan differ from those of one thread, or nothing happened\n", name);
        return false;
    }
    std::printf("streams, %s: %d frames each, %zu of %zu outputs differ between the two\n", name, FRAMES, moving, found[0].size());
    return true;
}

// What a task throws is thrown once all have ended, whoever ran it, and the next one runs.
bool throws() {
    Pool pool(3);
    for (int thrower = 0; thrower < 3; ++thrower) {
        std::atomic<int> ended{0};
        bool caught = false;
        try {
            pool.run([&](int t) {
                if (t == thrower) throw std::bad_alloc();
                ++ended;
            });
        } catch (const std::bad_alloc&) {
            caught = ended == 2;
        }
        int sum[3] = {};
        pool.run([&](int t) { sum[t] = t + 1; });
        if (!caught || sum[0] + sum[1] + sum[2] != 6) {
            std::printf("pool: a task that threw in thread %d was not heard of\n", thrower);
            return false;
        }
    }
    return true;
}

}  // namespace

int main() { return agree("float32", make()) && agree("int8", make_int8()) && throws() ? 0 : 1; }
