// SPDX-License-Identifier: MIT
#include "base/check.h"

#include <string>

namespace tokenspeed {
namespace {

std::string message(Invariant which, const char* what) {
    std::string text("I");
    text.append(std::to_string(static_cast<int>(which))).append(": ").append(what);
    return text;
}

}  // namespace

InvariantError::InvariantError(Invariant which, const char* what)
    : std::logic_error(message(which, what)), which_(which) {}

void fail(Invariant which, const char* what) { throw InvariantError(which, what); }

}  // namespace tokenspeed
