// SPDX-License-Identifier: MIT
#include <array>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "base/bounded.h"
#include "base/check.h"
#include "base/hash.h"
#include "base/ids.h"
#include "base/random.h"
#include "test.h"

using namespace tokenspeed;

static_assert(!std::is_convertible_v<BlockId, SlotId> && !std::is_convertible_v<std::int32_t, BlockId>);

namespace {

const HashKey kKey{0x0706050403020100U, 0x0f0e0d0c0b0a0908U};

std::vector<std::uint8_t> counting(std::size_t n) {
    std::vector<std::uint8_t> bytes(n);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    return bytes;
}

}  // namespace

// The first outputs of the authors' test vectors: key 00..0f, message of 0 and of 1 byte.
TEST(hash_bytes_matches_the_published_vectors) {
    const std::array<std::uint8_t, 16> empty{0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                             0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    const std::array<std::uint8_t, 16> one{0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44,
                                           0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45};
    const Hash128 of_empty = hash_bytes(kKey, {});
    const Hash128 of_one = hash_bytes(kKey, counting(1));
    EXPECT(std::memcmp(&of_empty, empty.data(), 16) == 0);
    EXPECT(std::memcmp(&of_one, one.data(), 16) == 0);
}

TEST(hash_block_equals_hash_bytes_of_parent_and_tokens) {
    const Hash128 parent{123, 456};
    for (std::size_t n = 1; n < 40; ++n) {
        std::vector<std::int32_t> tokens(n);
        std::iota(tokens.begin(), tokens.end(), 1000);
        std::vector<std::uint8_t> bytes(16 + 4 * n);
        std::memcpy(bytes.data(), &parent, 16);
        std::memcpy(bytes.data() + 16, tokens.data(), 4 * n);
        EXPECT(hash_block(kKey, parent, tokens) == hash_bytes(kKey, bytes));
    }
}

TEST(hash_depends_on_key_parent_and_every_token) {
    const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5};
    const Hash128 base = hash_block(kKey, {}, tokens);
    EXPECT(!(base == hash_block({1, 2}, {}, tokens)));
    EXPECT(!(base == hash_block(kKey, {0, 1}, tokens)));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        std::vector<std::int32_t> other = tokens;
        ++other[i];
        EXPECT(!(base == hash_block(kKey, {}, other)));
    }
}

TEST(salts_start_separate_chains) {
    EXPECT(!(hash_salt(kKey, {}) == hash_salt(kKey, counting(1))));
    EXPECT(!(hash_salt(kKey, counting(3)) == hash_bytes(kKey, counting(3))));
}

TEST(bounded_refuses_what_does_not_fit) {
    std::array<std::int32_t, 2> memory{};
    Bounded<std::int32_t> list{std::span(memory)};
    list.push(1);
    EXPECT(list.room() == 1);
    EXPECT_THROWS(InvariantError, (void)list.extend(2));
    list.push(2);
    EXPECT_THROWS(InvariantError, list.push(3));
    EXPECT(list.values()[1] == 2);
    list.clear();
    EXPECT(list.size() == 0 && list.capacity() == 2);
}

TEST(check_names_the_invariant) {
    try {
        check(false, Invariant::I6, "why");
        EXPECT(false);
    } catch (const InvariantError& error) {
        EXPECT(error.which() == Invariant::I6);
        EXPECT(std::strcmp(error.what(), "I6: why") == 0);
    }
}

TEST(random_repeats_by_seed) {
    Random a(7);
    Random b(7);
    Random c(8);
    EXPECT(a.next() == b.next());
    EXPECT(a.next() != c.next());
}
