"""Check digits. Each takes the bare characters (no separators) and says whether they agree with one another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BECH32_FACTORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
BECH32_ENDS = (1, 0x2BC830A3)  # bech32 (BIP 173) and bech32m (BIP 350)
# Verhoeff 1969: multiplication in the dihedral group of order ten, and the powers of its permutation
DIHEDRAL = [
    [(a + b) % 5 if b < 5 else 5 + (a + b) % 5 for b in range(10)] if a < 5 else
    [5 + (a - b) % 5 if b < 5 else (a - b) % 5 for b in range(10)]
    for a in range(10)
]  # fmt: skip
PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812: every second digit from the right doubled, sum of digits divisible by ten."""
    doubled = sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)] for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def weighted(digits: str, weights: Sequence[int]) -> int:
    """Sum of the digits times their weights; digits beyond the weights do not count."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def mod97(text: str) -> bool:
    """ISO 7064 as IBANs use it: the first four characters to the end, letters as 10 to 35, remainder one."""
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def mod11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10 (German tax ids)."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def verhoeff(digits: str) -> bool:
    """Verhoeff's check over the dihedral group (Aadhaar)."""
    check = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(position % 8):
            value = PERMUTATION[value]
        check = DIHEDRAL[check][value]
    return check == 0


def base58check(text: str) -> bool:
    """Bitcoin's addresses before 2017: 25 bytes of which the last four are a double SHA-256 of the others."""
    number = 0
    for char in text:
        number = number * 58 + BASE58.index(char)
    if number.bit_length() > 200:
        return False
    raw = number.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


def bech32(text: str) -> bool:
    """BIP 173 and 350: a polynomial over the human-readable part and the data, both in one case."""
    prefix, _, data = text.lower().rpartition("1")
    if text not in (text.lower(), text.upper()) or any(char not in BECH32 for char in data):
        return False
    values = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    check = 1
    for value in values + [BECH32.index(char) for char in data]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, factor in enumerate(BECH32_FACTORS):
            check ^= factor if top >> bit & 1 else 0
    return check in BECH32_ENDS
