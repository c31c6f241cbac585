// SPDX-License-Identifier: MIT
// A test runner: TEST(name) { EXPECT(...); } and one main. Prints failures with their place; exit status 1 on
// any.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace test {

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

inline bool add(const char* name, void (*run)()) {
    cases().push_back({name, run});
    return true;
}

inline void expect(bool holds, const char* text, const char* file, int line) {
    if (!holds) {
        ++failures();
        std::printf("%s:%d: %s\n", file, line, text);
    }
}

// Run every case whose name contains the first argument.
inline int run_all(int argc, char** argv) {
    int run = 0;
    for (const Case& each : cases()) {
        if (argc > 1 && std::strstr(each.name, argv[1]) == nullptr) {
            continue;
        }
        const int before = failures();
        try {
            each.run();
        } catch (const std::exception& error) {
            ++failures();
            std::printf("%s: threw %s\n", each.name, error.what());
        }
        std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", each.name);
        ++run;
    }
    std::printf("%d run, %d failures\n", run, failures());
    return failures() == 0 && run > 0 ? 0 : 1;
}

}  // namespace test

#define TEST(name)                                                \
    static void name();                                           \
    static const bool name##_added = ::test::add(#name, &(name)); \
    static void name()
#define EXPECT(...) ::test::expect(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define EXPECT_THROWS(type, ...)                                                   \
    do {                                                                           \
        bool thrown = false;                                                       \
        try {                                                                      \
            __VA_ARGS__;                                                           \
        } catch (const type&) {                                                    \
            thrown = true;                                                         \
        }                                                                          \
        ::test::expect(thrown, #__VA_ARGS__ " throws " #type, __FILE__, __LINE__); \
    } while (false)

int main(int argc, char** argv) { return ::test::run_all(argc, argv); }
