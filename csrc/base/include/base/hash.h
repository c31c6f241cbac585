// SPDX-License-Identifier: MIT
// Keyed 128-bit hashing: SipHash-2-4 with 128-bit output (Aumasson and Bernstein), little endian.
// Block hashes chain: hash(block i) = H(key, hash(block i-1) | its tokens); the chain starts from the tenant
// salt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tokenspeed {

struct Hash128 {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    friend bool operator==(const Hash128&, const Hash128&) = default;
};

struct HashKey {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
};

// The slow true path: any bytes.
Hash128 hash_bytes(HashKey key, std::span<const std::uint8_t> bytes);

// Start of a chain: no chain of one salt meets a chain of another.
Hash128 hash_salt(HashKey key, std::span<const std::uint8_t> salt);

// One block after `parent`; equal to hash_bytes over the parent's 16 bytes and the tokens' 4 each.
Hash128 hash_block(HashKey key, Hash128 parent, std::span<const std::int32_t> tokens);

// A fast unkeyed 64-bit digest for event logs; not for identity.
std::uint64_t digest64(std::uint64_t seed, std::span<const std::uint8_t> bytes);

template <class T>
std::uint64_t digest_of(std::uint64_t seed, std::span<const T> values) {
    return digest64(seed, {reinterpret_cast<const std::uint8_t*>(values.data()), values.size_bytes()});
}

}  // namespace tokenspeed
