// SPDX-License-Identifier: MIT
// floor: request. A request is in one state at a time: a state cannot be copied.
#include <utility>

#include "request/states.h"

namespace tokenspeed {

Decoding take(Decoding& request) {
#ifdef WRONG
    return request;
#else
    return std::move(request);
#endif
}

}  // namespace tokenspeed
