// SPDX-License-Identifier: MIT
#include "base/hash.h"

#include <bit>
#include <cstring>

#include "base/plant.h"

namespace tokenspeed {
namespace {

static_assert(std::endian::native == std::endian::little, "hashes are defined on little-endian words");

class Sip128 {
 public:
    explicit Sip128(HashKey key)
        : v0_(key.low ^ 0x736f6d6570736575U),
          v1_(key.high ^ 0x646f72616e646f6dU ^ 0xeeU),
          v2_(key.low ^ 0x6c7967656e657261U),
          v3_(key.high ^ 0x7465646279746573U) {}

    void absorb(std::uint64_t word) {
        v3_ ^= word;
        round();
        round();
        v0_ ^= word;
    }
    // `tail` holds the bytes after the last whole word, `bytes` the length of the message.
    Hash128 finish(std::uint64_t tail, std::size_t bytes) {
        absorb(tail | (static_cast<std::uint64_t>(bytes) << 56U));
        v2_ ^= 0xeeU;
        const std::uint64_t low = squeeze();
        v1_ ^= 0xddU;
        return {low, squeeze()};
    }

 private:
    void round() {
        v0_ += v1_;
        v1_ = std::rotl(v1_, 13) ^ v0_;
        v0_ = std::rotl(v0_, 32);
        v2_ += v3_;
        v3_ = std::rotl(v3_, 16) ^ v2_;
        v0_ += v3_;
        v3_ = std::rotl(v3_, 21) ^ v0_;
        v2_ += v1_;
        v1_ = std::rotl(v1_, 17) ^ v2_;
        v2_ = std::rotl(v2_, 32);
    }
    std::uint64_t squeeze() {
        for (int i = 0; i < 4; ++i) {
            round();
        }
        return v0_ ^ v1_ ^ v2_ ^ v3_;
    }

    std::uint64_t v0_, v1_, v2_, v3_;
};

std::uint64_t load_word(const void* from, std::size_t bytes) {
    std::uint64_t word = 0;
    std::memcpy(&word, from, bytes);
    return word;
}

}  // namespace

Hash128 hash_bytes(HashKey key, std::span<const std::uint8_t> bytes) {
    Sip128 sip(key);
    const std::size_t whole = bytes.size() / 8;
    for (std::size_t i = 0; i < whole; ++i) {
        sip.absorb(load_word(bytes.data() + 8 * i, 8));
    }
    const std::size_t left = bytes.size() % 8;
    const std::uint64_t tail = left == 0 ? 0 : load_word(bytes.data() + 8 * whole, left);
    return sip.finish(tail, bytes.size());
}

Hash128 hash_salt(HashKey key, std::span<const std::uint8_t> salt) {
    // Another key than that of blocks, so that no salt can pose as a block.
    const HashKey salt_key{~key.low, ~key.high};
    return hash_bytes(salt_key, planted(Plant::unsalted_hash) ? salt.first(0) : salt);
}

Hash128 hash_block(HashKey key, Hash128 parent, std::span<const std::int32_t> tokens) {
    if (planted(Plant::unchained_hash)) {
        parent = Hash128{};
    }
    Sip128 sip(key);
    sip.absorb(parent.low);
    sip.absorb(parent.high);
    const std::size_t pairs = tokens.size() / 2;
    for (std::size_t i = 0; i < pairs; ++i) {
        sip.absorb(load_word(tokens.data() + 2 * i, 8));
    }
    const std::uint64_t tail = tokens.size() % 2 == 0 ? 0 : load_word(tokens.data() + 2 * pairs, 4);
    return sip.finish(tail, 16 + 4 * tokens.size());
}

std::uint64_t digest64(std::uint64_t seed, std::span<const std::uint8_t> bytes) {
    std::uint64_t state = seed ^ (0x9e3779b97f4a7c15U * (bytes.size() + 1));
    const auto mix = [&state](std::uint64_t word) {
        state = (state ^ word) * 0xff51afd7ed558ccdU;
        state ^= state >> 32U;
    };
    const std::size_t whole = bytes.size() / 8;
    for (std::size_t i = 0; i < whole; ++i) {
        mix(load_word(bytes.data() + 8 * i, 8));
    }
    if (bytes.size() % 8 != 0) {
        mix(load_word(bytes.data() + 8 * whole, bytes.size() % 8));
    }
    return state;
}

}  // namespace tokenspeed
