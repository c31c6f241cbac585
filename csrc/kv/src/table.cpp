// SPDX-License-Identifier: MIT
#include "kv/table.h"

namespace tokenspeed {

std::int32_t Table::grow(BlockLease lease) {
    tail_.push(std::move(lease));
    return size() - 1;
}

std::optional<Table::Redirect> Table::freeze_next(PrefixTree& tree, Hash128 hash) {
    std::optional<BlockLease> duplicate = tree.freeze(path_, hash, tail_.pop_front());
    if (!duplicate) {
        return std::nullopt;
    }
    return Redirect{path_.size() - 1, path_.last(), std::move(*duplicate)};
}

void Table::clear() noexcept {
    tail_.clear();
    path_.clear();
}

void Table::copy_blocks(std::span<std::int32_t> out) const {
    path_.copy_blocks(out);
    for (std::int32_t i = 0; i < tail_.size(); ++i) {
        out[static_cast<std::size_t>(path_.size() + i)] = tail_[i].value;
    }
}

}  // namespace tokenspeed
