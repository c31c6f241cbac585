# SPDX-License-Identifier: MIT
# ruff: noqa: B905, RET503, SIM102  (docstrings are lists of requests; the code is written as people write it)
"""Small functions that people ask a model for first; `bundled_samples` turns each into short chats.

A docstring lists ways to ask for the function, parted by `|`, each to follow "Write a function to ...". Real
code: imported and parsed, never run by the scripts. Nothing else may import this file."""

from __future__ import annotations

import collections
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def reverse_string(text: str) -> str:
    """reverse a string|return a string backwards|reverse the characters of a text"""
    return text[::-1]


def fibonacci(n: int) -> int:
    """compute the n-th Fibonacci number|return the nth Fibonacci number|calculate Fibonacci numbers"""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def fibonacci_sequence(count: int) -> list[int]:
    """list the first n Fibonacci numbers|generate the Fibonacci sequence|print the Fibonacci sequence"""
    numbers = []
    a, b = 0, 1
    for _ in range(count):
        numbers.append(a)
        a, b = b, a + b
    return numbers


def is_prime(n: int) -> bool:
    """check whether a number is prime|test if n is a prime number|tell if an integer is prime"""
    if n < 2:
        return False
    divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            return False
        divisor += 1
    return True


def primes_below(limit: int) -> list[int]:
    """find all primes below a limit|list the prime numbers up to n|implement the sieve of Eratosthenes"""
    sieve = [True] * limit
    for i in range(2, int(limit**0.5) + 1):
        if sieve[i]:
            for multiple in range(i * i, limit, i):
                sieve[multiple] = False
    return [i for i in range(2, limit) if sieve[i]]


def factorial(n: int) -> int:
    """compute the factorial of a number|calculate n factorial|return n!"""
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result


def gcd(a: int, b: int) -> int:
    """find the greatest common divisor of two numbers|compute the gcd of a and b|implement Euclid's algorithm"""
    while b:
        a, b = b, a % b
    return a


def is_palindrome(text: str) -> bool:
    """check whether a string is a palindrome|test if a word reads the same backwards|detect palindromes"""
    letters = [c.lower() for c in text if c.isalnum()]
    return letters == letters[::-1]


def fizzbuzz(n: int) -> list[str]:
    """solve FizzBuzz|play fizz buzz up to n|implement FizzBuzz"""
    lines = []
    for i in range(1, n + 1):
        if i % 15 == 0:
            lines.append("FizzBuzz")
        elif i % 3 == 0:
            lines.append("Fizz")
        elif i % 5 == 0:
            lines.append("Buzz")
        else:
            lines.append(str(i))
    return lines


def binary_search(values: list[int], target: int) -> int:
    """search a sorted list with binary search|find the index of a value in a sorted list|implement binary search"""
    low, high = 0, len(values) - 1
    while low <= high:
        middle = (low + high) // 2
        if values[middle] == target:
            return middle
        if values[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def bubble_sort(values: list[int]) -> list[int]:
    """sort a list with bubble sort|implement bubble sort"""
    values = list(values)
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            if values[i] > values[i + 1]:
                values[i], values[i + 1] = values[i + 1], values[i]
    return values


def quicksort(values: list[int]) -> list[int]:
    """sort a list with quicksort|implement quicksort|sort a list of numbers"""
    if len(values) <= 1:
        return values
    pivot = values[len(values) // 2]
    left = [v for v in values if v < pivot]
    middle = [v for v in values if v == pivot]
    right = [v for v in values if v > pivot]
    return quicksort(left) + middle + quicksort(right)


def merge_sort(values: list[int]) -> list[int]:
    """sort a list with merge sort|implement merge sort"""
    if len(values) <= 1:
        return values
    middle = len(values) // 2
    left, right = merge_sort(values[:middle]), merge_sort(values[middle:])
    merged = []
    while left and right:
        merged.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return merged + left + right


def count_words(text: str) -> dict[str, int]:
    """count the words in a text|count how often each word occurs|build a word frequency table"""
    counts: dict[str, int] = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def count_vowels(text: str) -> int:
    """count the vowels in a string|count vowels"""
    return sum(1 for c in text.lower() if c in "aeiou")


def flatten(items: list) -> list:
    """flatten a nested list|turn a list of lists into one list"""
    flat = []
    for item in items:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat


def remove_duplicates(items: list) -> list:
    """remove duplicates from a list|deduplicate a list and keep its order|return the unique items of a list"""
    seen = set()
    unique = []
    for item in items:
        if item not in seen:
            seen.add(item)
            unique.append(item)
    return unique


def sum_list(numbers: list[float]) -> float:
    """sum a list of numbers|add up all numbers in a list|compute the sum of a list"""
    total = 0
    for number in numbers:
        total += number
    return total


def average(numbers: list[float]) -> float:
    """compute the average of a list|calculate the mean of some numbers|return the mean"""
    if not numbers:
        raise ValueError("no numbers given")
    return sum(numbers) / len(numbers)


def median(numbers: list[float]) -> float:
    """compute the median of a list|find the median"""
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def find_max(numbers: list[float]) -> float:
    """find the largest number in a list|return the maximum of a list"""
    largest = numbers[0]
    for number in numbers[1:]:
        if number > largest:
            largest = number
    return largest


def second_largest(numbers: list[int]) -> int:
    """find the second largest number in a list|return the second biggest value"""
    ordered = sorted(set(numbers))
    return ordered[-2]


def add(a: float, b: float) -> float:
    """add two numbers|return the sum of two numbers"""
    return a + b


def multiply(a: float, b: float) -> float:
    """multiply two numbers|return the product of two numbers"""
    return a * b


def is_even(n: int) -> bool:
    """check if a number is even|tell whether a number is even or odd"""
    return n % 2 == 0


def celsius_to_fahrenheit(celsius: float) -> float:
    """convert Celsius to Fahrenheit|convert a temperature from Celsius to Fahrenheit"""
    return celsius * 9 / 5 + 32


def is_anagram(a: str, b: str) -> bool:
    """check whether two words are anagrams|test if two strings are anagrams of each other"""
    return sorted(a.lower()) == sorted(b.lower())


def read_lines(path: str) -> list[str]:
    """read a file line by line|read all lines of a text file|open a file and return its lines"""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def write_text(path: str, text: str) -> None:
    """write text to a file|save a string to a file"""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def load_json(path: str) -> dict:
    """load a JSON file|read JSON from a file|parse a JSON file"""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save_json(path: str, data: dict) -> None:
    """save a dictionary as JSON|write JSON to a file"""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)


def list_python_files(folder: str) -> list[Path]:
    """list all Python files in a folder|find every .py file below a directory"""
    return sorted(Path(folder).rglob("*.py"))


def find_emails(text: str) -> list[str]:
    """find all e-mail addresses in a text|extract emails with a regular expression"""
    return re.findall(r"[\w.+-]+@[\w-]+\.[\w.]+", text)


def is_valid_email(text: str) -> bool:
    """validate an e-mail address|check if a string is a valid email"""
    return re.fullmatch(r"[\w.+-]+@[\w-]+\.[\w.]+", text) is not None


def capitalize_words(text: str) -> str:
    """capitalize every word of a string|make the first letter of each word upper case"""
    return " ".join(word.capitalize() for word in text.split())


def chunks(items: list, size: int) -> Iterator[list]:
    """split a list into chunks|cut a list into pieces of n items"""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def merge_dicts(a: dict, b: dict) -> dict:
    """merge two dictionaries|combine two dicts"""
    return {**a, **b}


def invert_dict(mapping: dict) -> dict:
    """invert a dictionary|swap the keys and values of a dict"""
    return {value: key for key, value in mapping.items()}


def most_common(items: list):
    """find the most common element of a list|return the most frequent item"""
    return collections.Counter(items).most_common(1)[0][0]


def transpose(matrix: list[list[float]]) -> list[list[float]]:
    """transpose a matrix|swap the rows and columns of a matrix"""
    return [list(row) for row in zip(*matrix)]


def matrix_multiply(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    """multiply two matrices|compute a matrix product"""
    columns = list(zip(*b))
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]


def power(base: float, exponent: int) -> float:
    """raise a number to a power|compute x to the power of n"""
    result = 1
    for _ in range(exponent):
        result *= base
    return result


def is_leap_year(year: int) -> bool:
    """check if a year is a leap year|tell whether a year is a leap year"""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def to_binary(n: int) -> str:
    """convert a number to binary|write an integer in base 2"""
    if n == 0:
        return "0"
    digits = ""
    while n > 0:
        digits = str(n % 2) + digits
        n //= 2
    return digits


def sum_of_digits(n: int) -> int:
    """add up the digits of a number|compute the sum of digits"""
    return sum(int(digit) for digit in str(abs(n)))


def two_sum(numbers: list[int], target: int) -> tuple[int, int] | None:
    """find two numbers that add up to a target|solve two sum"""
    positions: dict[int, int] = {}
    for i, number in enumerate(numbers):
        if target - number in positions:
            return positions[target - number], i
        positions[number] = i
    return None


def is_balanced(text: str) -> bool:
    """check for balanced brackets|test whether parentheses match|validate brackets"""
    pairs = {")": "(", "]": "[", "}": "{"}
    stack = []
    for c in text:
        if c in "([{":
            stack.append(c)
        elif c in pairs:
            if not stack or stack.pop() != pairs[c]:
                return False
    return not stack


def greet(name: str) -> str:
    """greet a person by name|say hello to someone"""
    return f"Hello, {name}!"


def hello_world() -> None:
    """print hello world|print "Hello, world!\""""
    print("Hello, world!")


def timed(function: Callable) -> Callable:
    """measure how long a function takes|write a decorator that times a function"""

    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        print(f"{function.__name__} took {time.perf_counter() - start:.3f} s")
        return result

    return wrapper


def retry(function: Callable, attempts: int = 3):
    """retry a function when it fails|call a function again after an error"""
    for attempt in range(attempts):
        try:
            return function()
        except Exception:
            if attempt == attempts - 1:
                raise


def memoize(function: Callable) -> Callable:
    """cache the results of a function|write a memoize decorator"""
    cache = {}

    def wrapper(*args):
        if args not in cache:
            cache[args] = function(*args)
        return cache[args]

    return wrapper


def clamp(value: float, low: float, high: float) -> float:
    """clamp a value between two limits|limit a number to a range"""
    return max(low, min(high, value))


def longest_word(text: str) -> str:
    """find the longest word in a sentence|return the longest word"""
    return max(text.split(), key=len)


def caesar_cipher(text: str, shift: int) -> str:
    """encrypt a text with a Caesar cipher|shift every letter of a text"""
    result = ""
    for c in text:
        if c.isalpha():
            base = ord("A") if c.isupper() else ord("a")
            result += chr((ord(c) - base + shift) % 26 + base)
        else:
            result += c
    return result


def breadth_first_search(graph: dict, start):
    """walk a graph breadth first|implement BFS"""
    seen = {start}
    queue = collections.deque([start])
    while queue:
        node = queue.popleft()
        yield node
        for neighbour in graph[node]:
            if neighbour not in seen:
                seen.add(neighbour)
                queue.append(neighbour)


def depth_first_search(graph: dict, node, seen=None):
    """walk a graph depth first|implement DFS"""
    seen = seen if seen is not None else set()
    seen.add(node)
    for neighbour in graph[node]:
        if neighbour not in seen:
            depth_first_search(graph, neighbour, seen)
    return seen


class Stack:
    """implement a stack|write a stack class"""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def is_empty(self):
        return not self.items


class Queue:
    """implement a queue|write a queue class"""

    def __init__(self):
        self.items = collections.deque()

    def put(self, item):
        self.items.append(item)

    def get(self):
        return self.items.popleft()


class LinkedList:
    """implement a linked list|write a singly linked list"""

    def __init__(self):
        self.head = None

    def add(self, value):
        self.head = (value, self.head)

    def __iter__(self):
        node = self.head
        while node is not None:
            value, node = node
            yield value


class Point:
    """represent a point in the plane|write a class for a 2D point"""

    def __init__(self, x: float, y: float):
        self.x = x
        self.y = y

    def distance(self, other: Point) -> float:
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5


class BankAccount:
    """model a bank account|write a bank account class"""

    def __init__(self, balance: float = 0):
        self.balance = balance

    def deposit(self, amount: float) -> None:
        self.balance += amount

    def withdraw(self, amount: float) -> None:
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
