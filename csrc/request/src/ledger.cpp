// SPDX-License-Identifier: MIT
#include "request/ledger.h"

#include <utility>

#include "base/check.h"

namespace tokenspeed {

Ledger::Ledger(RequestId id, Rank rank, Ask ask, std::span<const std::int32_t> prompt,
               std::uint64_t arrival_us, const Terms& terms)
    : id_(id),
      rank_(rank),
      ask_(std::move(ask)),
      terms_(terms),
      pace_(Pace::of(terms.floor_mtps)),
      arrival_us_(arrival_us),
      prompt_tokens_(count_of(prompt)) {
    tokens_.reserve(prompt.size() + static_cast<std::size_t>(ask_.tokens_max));
    tokens_.assign(prompt.begin(), prompt.end());
}

void Ledger::hash_blocks(HashKey key, Hash128 root, std::int32_t block_tokens) {
    root_ = root;
    const std::int32_t blocks = tokens_known() / block_tokens;
    hashes_.reserve(static_cast<std::size_t>(blocks + 1 + ask_.tokens_max / block_tokens));
    if (blocks > 0) {
        (void)block_hash(key, block_tokens, blocks - 1);
    }
}

Hash128 Ledger::block_hash(HashKey key, std::int32_t block_tokens, std::int32_t i) {
    const auto tokens_per_block = static_cast<std::size_t>(block_tokens);
    const auto wanted = static_cast<std::size_t>(i) + 1;
    check(wanted * tokens_per_block <= tokens_.size(), Invariant::I7,
          "a block is hashed before its tokens are known");
    while (hashes_.size() < wanted) {
        const Hash128 parent = hashes_.empty() ? root_ : hashes_.back();
        const auto block = std::span(tokens_).subspan(hashes_.size() * tokens_per_block, tokens_per_block);
        hashes_.push_back(hash_block(key, parent, block));
    }
    return hashes_[wanted - 1];
}

}  // namespace tokenspeed
