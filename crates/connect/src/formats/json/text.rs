//! JSON as bytes: blocks, white space, strings, numbers, and values that are only walked over.
//!
//! Everything here stops at a line feed: an event is one line, so no value may reach into the next.
//! The grammar is RFC 8259, but for control characters inside strings, which pass.

use std::borrow::Cow;

use memchr::memchr;
use wide::u8x16;

/// Bytes that are looked at together.
pub(in crate::formats) const BLOCK: usize = 16;

/// How deep values of fields that the schema does not know may nest.
pub(in crate::formats) const MAX_DEPTH: usize = 512;

/// Why an event cannot be a row. One word wide, since every read of a value may answer it.
#[derive(Debug)]
pub(in crate::formats) struct Failure(Box<Reason>);

#[derive(Debug)]
struct Reason {
    /// The fields that it happened in, from the innermost outwards.
    path: Vec<String>,
    what: Cow<'static, str>,
}

/// Where reading goes on, or why it cannot.
pub(in crate::formats) type Step = Result<usize, Failure>;

impl Failure {
    #[cold]
    pub(in crate::formats) fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Reason {
            path: Vec::new(),
            what: what.into(),
        }))
    }

    /// Says in which field it happened.
    #[cold]
    pub(in crate::formats) fn within(mut self, field: &str) -> Self {
        self.0.path.push(field.to_owned());
        self
    }

    /// The outermost field that it happened in.
    pub(in crate::formats) fn field(&self) -> Option<&str> {
        self.0.path.last().map(String::as_str)
    }

    /// The message of the reject: names the field, never the value.
    pub(in crate::formats) fn message(&self) -> String {
        let Reason { path, what } = &*self.0;
        if path.is_empty() {
            return what.clone().into_owned();
        }
        let path: Vec<&str> = path.iter().rev().map(String::as_str).collect();
        format!("field={}: {what}", path.join("."))
    }
}

/// The byte at `at`; behind the end, a line feed.
#[inline]
pub(in crate::formats) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(b'\n')
}

/// The 16 bytes at `at`; none near the end, where [`last_block`] serves. Two functions, so that the
/// common one stays in registers.
#[inline]
pub(in crate::formats) fn block(bytes: &[u8], at: usize) -> Option<&[u8; BLOCK]> {
    let at = at as u32 as usize; // which it is, and so the compiler knows that no sum below overflows
    bytes.get(at..at + BLOCK)?.first_chunk()
}

/// The bytes at `at`, filled up with line feeds.
#[cold]
pub(in crate::formats) fn last_block(bytes: &[u8], at: usize) -> [u8; BLOCK] {
    let mut block = [b'\n'; BLOCK];
    let rest = bytes.get(at..).unwrap_or_default();
    let len = rest.len().min(BLOCK);
    block[..len].copy_from_slice(&rest[..len]);
    block
}

/// One bit for each quote.
#[inline]
pub(in crate::formats) fn quotes(block: u8x16) -> u32 {
    const QUOTE: u8x16 = u8x16::new([b'"'; BLOCK]);
    block.cmp_eq(QUOTE).move_mask().cast_unsigned()
}

/// One bit for each byte that ends a plain stretch of a string: quote, backslash, line feed.
#[inline]
pub(in crate::formats) fn special(block: u8x16) -> u32 {
    const QUOTE: u8x16 = u8x16::new([b'"'; BLOCK]);
    const BACKSLASH: u8x16 = u8x16::new([b'\\'; BLOCK]);
    const LINE_FEED: u8x16 = u8x16::new([b'\n'; BLOCK]);
    let found = block.cmp_eq(QUOTE) | block.cmp_eq(BACKSLASH) | block.cmp_eq(LINE_FEED);
    found.move_mask().cast_unsigned()
}

/// One bit for each byte that two blocks have in common.
#[inline]
pub(in crate::formats) fn same(left: &[u8; BLOCK], right: u8x16) -> u32 {
    u8x16::new(*left).cmp_eq(right).move_mask().cast_unsigned()
}

/// Where the line that holds `at` ends: its line feed, or the end of the text.
pub(in crate::formats) fn line_end(bytes: &[u8], at: usize) -> usize {
    memchr(b'\n', &bytes[at..]).map_or(bytes.len(), |n| at + n)
}

/// Skips white space within a line.
#[inline]
pub(in crate::formats) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(byte(bytes, at), b' ' | b'\t' | b'\r') {
        at += 1;
    }
    at
}

/// What a value looks like from its first byte, for messages.
pub(in crate::formats) fn found(first: u8) -> &'static str {
    match first {
        b'"' => "a string",
        b'{' => "an object",
        b'[' => "a list",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        b'-' | b'0'..=b'9' => "a number",
        b'\n' => "the end of the line",
        _ => "no value",
    }
}

/// Whether `null` is at `at`.
#[inline]
pub(in crate::formats) fn is_null(bytes: &[u8], at: usize) -> bool {
    let at = at as u32 as usize; // as in `block`
    bytes.get(at..at + 4) == Some(b"null")
}

/// Walks over a fixed word such as `null`.
pub(in crate::formats) fn word(bytes: &[u8], at: usize, word: &'static [u8]) -> Step {
    if bytes.get(at..).is_some_and(|rest| rest.starts_with(word)) {
        Ok(at + word.len())
    } else {
        Err(Failure::new("a word is neither true, false nor null"))
    }
}

/// The end of the number that begins at `at`.
pub(in crate::formats) fn number_end(bytes: &[u8], mut at: usize) -> Step {
    let digits = |mut at: usize| {
        let from = at;
        while byte(bytes, at).is_ascii_digit() {
            at += 1;
        }
        if at == from {
            Err(Failure::new("a number is malformed"))
        } else {
            Ok(at)
        }
    };
    if byte(bytes, at) == b'-' {
        at += 1;
    }
    at = if byte(bytes, at) == b'0' {
        at + 1
    } else {
        digits(at)?
    };
    if byte(bytes, at) == b'.' {
        at = digits(at + 1)?;
    }
    if matches!(byte(bytes, at), b'e' | b'E') {
        at += 1;
        if matches!(byte(bytes, at), b'+' | b'-') {
            at += 1;
        }
        at = digits(at)?;
    }
    Ok(at)
}

/// The character of the escape sequence whose backslash is at `at`, and where it ends.
pub(in crate::formats) fn escape(bytes: &[u8], at: usize) -> Result<(char, usize), Failure> {
    let plain = match byte(bytes, at + 1) {
        plain @ (b'"' | b'\\' | b'/') => char::from(plain),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode(bytes, at + 2),
        _ => return Err(Failure::new("unknown escape sequence in a string")),
    };
    Ok((plain, at + 2))
}

/// The character of `\uXXXX`, or of a surrogate pair of them, whose digits begin at `at`.
fn unicode(bytes: &[u8], at: usize) -> Result<(char, usize), Failure> {
    let high = hex4(bytes, at)?;
    if let Some(one) = char::from_u32(high) {
        return Ok((one, at + 4));
    }
    let lone = || Failure::new("lone surrogate in a string");
    if byte(bytes, at + 4) != b'\\' || byte(bytes, at + 5) != b'u' {
        return Err(lone());
    }
    let low = hex4(bytes, at + 6)?;
    if !(0xd800..0xdc00).contains(&high) || !(0xdc00..0xe000).contains(&low) {
        return Err(lone());
    }
    let pair = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    Ok((char::from_u32(pair).ok_or_else(lone)?, at + 10))
}

fn hex4(bytes: &[u8], at: usize) -> Result<u32, Failure> {
    (at..at + 4).try_fold(0, |sum, i| {
        let digit = char::from(byte(bytes, i)).to_digit(16);
        Ok(sum * 16 + digit.ok_or_else(|| Failure::new("malformed \\u escape in a string"))?)
    })
}

/// The first special byte at or behind `at`.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        let hits = match block(bytes, at) {
            Some(block) => special(u8x16::new(*block)),
            None => special(u8x16::new(last_block(bytes, at))),
        };
        if hits != 0 {
            return at + hits.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
}

/// Walks over the string whose opening quote is at `at`.
pub(in crate::formats) fn skip_string(bytes: &[u8], at: usize) -> Step {
    let mut at = at + 1;
    loop {
        at = plain_end(bytes, at);
        match byte(bytes, at) {
            b'"' => return Ok(at + 1),
            b'\\' => at = escape(bytes, at)?.1,
            _ => return Err(unended()),
        }
    }
}

/// What to say when a line ends in the middle of a string.
#[cold]
pub(in crate::formats) fn unended() -> Failure {
    Failure::new("the line ends within a string")
}

/// The string whose opening quote is at `at`, and where it ends.
pub(in crate::formats) fn string(text: &str, at: usize) -> Result<(Cow<'_, str>, usize), Failure> {
    let bytes = text.as_bytes();
    let mut from = at + 1;
    let mut decoded = String::new();
    loop {
        let end = plain_end(bytes, from);
        let stretch = &text[from..end.min(bytes.len())];
        match byte(bytes, end) {
            b'"' if decoded.is_empty() => return Ok((Cow::Borrowed(stretch), end + 1)),
            b'"' => {
                decoded.push_str(stretch);
                return Ok((Cow::Owned(decoded), end + 1));
            }
            b'\\' => {
                let (one, next) = escape(bytes, end)?;
                decoded.push_str(stretch);
                decoded.push(one);
                from = next;
            }
            _ => return Err(unended()),
        }
    }
}

/// Walks over a key, whose opening quote must be at `at`, and its colon.
fn skip_key(bytes: &[u8], at: usize) -> Step {
    if byte(bytes, at) != b'"' {
        return Err(Failure::new("expected a key"));
    }
    colon(bytes, skip_string(bytes, at)?)
}

/// Walks over a colon and the white space around it.
pub(in crate::formats) fn colon(bytes: &[u8], at: usize) -> Step {
    let at = skip_space(bytes, at);
    if byte(bytes, at) != b':' {
        return Err(Failure::new("expected a colon after a key"));
    }
    Ok(skip_space(bytes, at + 1))
}

/// Walks over any value, checking that it is JSON. Needs no stack of its own, however deep.
pub(in crate::formats) fn skip_value(bytes: &[u8], mut at: usize) -> Step {
    let mut open = Open::default();
    loop {
        at = skip_space(bytes, at);
        match byte(bytes, at) {
            b'"' => at = skip_string(bytes, at)?,
            b'-' | b'0'..=b'9' => at = number_end(bytes, at)?,
            b't' => at = word(bytes, at, b"true")?,
            b'f' => at = word(bytes, at, b"false")?,
            b'n' => at = word(bytes, at, b"null")?,
            b'{' => {
                open.push(true)?;
                at = skip_space(bytes, at + 1);
                if byte(bytes, at) != b'}' {
                    at = skip_key(bytes, at)?;
                    continue;
                }
            }
            b'[' => {
                open.push(false)?;
                at = skip_space(bytes, at + 1);
                if byte(bytes, at) != b']' {
                    continue;
                }
            }
            other => {
                return Err(Failure::new(format!(
                    "expected a value, got {}",
                    found(other)
                )));
            }
        }
        // Behind a value, or at the end of an empty object or list.
        loop {
            let Some(object) = open.top() else {
                return Ok(at);
            };
            at = skip_space(bytes, at);
            match (byte(bytes, at), object) {
                (b',', true) => {
                    at = skip_key(bytes, skip_space(bytes, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at += 1;
                    break;
                }
                (b'}', true) | (b']', false) => {
                    open.pop();
                    at += 1;
                }
                (_, true) => return Err(Failure::new("expected a comma or the object's end")),
                (_, false) => return Err(Failure::new("expected a comma or the list's end")),
            }
        }
    }
}

/// The objects and lists that are open: one bit each, set for an object.
#[derive(Default)]
struct Open {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Open {
    fn push(&mut self, object: bool) -> Result<(), Failure> {
        if self.depth == MAX_DEPTH {
            return Err(Failure::new(format!("nested deeper than {MAX_DEPTH}")));
        }
        let (slot, bit) = (self.depth / 64, self.depth % 64);
        self.objects[slot] = self.objects[slot] & !(1 << bit) | (u64::from(object) << bit);
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }

    fn top(&self) -> Option<bool> {
        let last = self.depth.checked_sub(1)?;
        Some(self.objects[last / 64] >> (last % 64) & 1 == 1)
    }
}
