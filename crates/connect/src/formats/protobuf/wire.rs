//! Protobuf's wire format: varints, lengths, and fields that are only walked over.
//!
//! Positions are absolute in the bytes of a batch; nothing here reads beyond `end`, where the message
//! ends that is being read. The encoding is that of protobuf.dev/programming-guides/encoding.

use crate::formats::json::text::{Failure, Step};

/// Messages and groups nest at most this deep, as everywhere.
pub(super) const MAX_DEPTH: u32 = 100;

pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const BYTES: u32 = 2;
pub(super) const GROUP: u32 = 3;
pub(super) const END_GROUP: u32 = 4;
pub(super) const FIXED32: u32 = 5;

/// Where a message that is read ends, and all bytes of the batch.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) bytes: &'a [u8],
    /// At most the length of `bytes`.
    pub(super) end: usize,
}

#[expect(clippy::inline_always, reason = "a call costs more than what they do")]
impl Span<'_> {
    /// The varint at `at`, and where it ends.
    #[inline(always)]
    pub(super) fn varint(self, at: usize) -> Result<(u64, usize), Failure> {
        if let Some(block) = self.bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_le_bytes(*block);
            // The first byte without a continuation bit is the last one.
            let stop = !word & 0x8080_8080_8080_8080;
            if stop != 0 {
                let next = at + (stop.trailing_zeros() as usize >> 3) + 1;
                if next > self.end {
                    return Err(cut());
                }
                return Ok((gather(word & (stop ^ (stop - 1))), next));
            }
        }
        self.long_varint(at)
    }

    /// A varint of nine or ten bytes, or one near the end of the batch.
    #[cold]
    #[inline(never)]
    fn long_varint(self, at: usize) -> Result<(u64, usize), Failure> {
        let mut value = 0_u64;
        let bytes = &self.bytes[..self.end];
        for n in 0..10 {
            let Some(&byte) = bytes.get(at + n) else {
                return Err(cut());
            };
            if n == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte < 0x80 {
                return Ok((value, at + n + 1));
            }
        }
        Err(Failure::new("a varint is longer than 64 bits"))
    }

    /// Where the bytes begin and end whose length is at `at`.
    #[inline(always)]
    pub(super) fn length(self, at: usize) -> Result<(usize, usize), Failure> {
        let (len, from) = match self.bytes.get(at) {
            Some(&byte) if byte < 0x80 && at < self.end => (u64::from(byte), at + 1),
            _ => self.varint(at)?,
        };
        if len > (self.end - from) as u64 {
            return Err(Failure::new("a length reaches beyond the message"));
        }
        Ok((from, from + len as usize))
    }

    /// The four bytes at `at`, as a number.
    #[inline]
    pub(super) fn fixed32(self, at: usize) -> Result<(u32, usize), Failure> {
        match self.bytes[..self.end]
            .get(at..)
            .and_then(<[u8]>::first_chunk)
        {
            Some(block) => Ok((u32::from_le_bytes(*block), at + 4)),
            None => Err(cut()),
        }
    }

    /// The eight bytes at `at`, as a number.
    #[inline]
    pub(super) fn fixed64(self, at: usize) -> Result<(u64, usize), Failure> {
        match self.bytes[..self.end]
            .get(at..)
            .and_then(<[u8]>::first_chunk)
        {
            Some(block) => Ok((u64::from_le_bytes(*block), at + 8)),
            None => Err(cut()),
        }
    }

    /// The key at `at`: a field number and a wire type.
    #[inline(always)]
    pub(super) fn key(self, at: usize) -> Result<(u32, usize), Failure> {
        match self.bytes.get(at) {
            Some(&byte) if byte < 0x80 && at < self.end => Ok((u32::from(byte), at + 1)),
            _ => {
                let (key, next) = self.varint(at)?;
                match u32::try_from(key) {
                    Ok(key) => Ok((key, next)),
                    Err(_) => Err(Failure::new("a field number is too large")),
                }
            }
        }
    }

    /// Walks over the value of a field, of which `at` is behind the key.
    pub(super) fn skip(self, key: u32, at: usize, depth: u32) -> Step {
        if key >> 3 == 0 {
            return Err(Failure::new("a field has number 0"));
        }
        match key & 7 {
            VARINT => self.varint(at).map(|(_, next)| next),
            FIXED64 => self.fixed64(at).map(|(_, next)| next),
            BYTES => self.length(at).map(|(_, next)| next),
            FIXED32 => self.fixed32(at).map(|(_, next)| next),
            GROUP => self.group(key, at, depth).map(|(_, next)| next),
            END_GROUP => Err(Failure::new("a group ends that did not begin")),
            _ => Err(Failure::new("a field has an unknown wire type")),
        }
    }

    /// Where the fields of the group end that begins with `key` before `at`, and where reading goes
    /// on behind its end.
    pub(super) fn group(
        self,
        key: u32,
        mut at: usize,
        depth: u32,
    ) -> Result<(usize, usize), Failure> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(too_deep());
        };
        while at < self.end {
            let (inner, next) = self.key(at)?;
            if inner & 7 == END_GROUP {
                if inner >> 3 != key >> 3 {
                    return Err(Failure::new("a group ends that did not begin"));
                }
                return Ok((at, next));
            }
            at = self.skip(inner, next, depth)?;
        }
        Err(cut())
    }
}

/// The seven bits of each byte, put together.
#[inline]
fn gather(word: u64) -> u64 {
    let word = word & 0x7f7f_7f7f_7f7f_7f7f;
    let pairs = (word & 0x7f00_7f00_7f00_7f00) >> 1 | word & 0x007f_007f_007f_007f;
    let fours = (pairs & 0x3fff_0000_3fff_0000) >> 2 | pairs & 0x0000_3fff_0000_3fff;
    (fours & 0x0fff_ffff_0000_0000) >> 4 | fours & 0x0000_0000_0fff_ffff
}

#[cold]
pub(super) fn cut() -> Failure {
    Failure::new("the message ends in the middle of a field")
}

#[cold]
pub(super) fn too_deep() -> Failure {
    Failure::new("messages nest deeper than 100")
}

#[inline]
pub(super) fn zigzag32(value: u32) -> u32 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

#[inline]
pub(super) fn zigzag64(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::encoding::{decode_varint, encode_varint};

    fn span(bytes: &[u8]) -> Span<'_> {
        Span {
            bytes,
            end: bytes.len(),
        }
    }

    #[test]
    fn varints_of_all_lengths_read_as_prost_reads_them() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                for padding in [0, 20] {
                    let mut bytes = Vec::new();
                    encode_varint(value, &mut bytes);
                    let len = bytes.len();
                    bytes.resize(len + padding, 0xff);
                    assert_eq!(span(&bytes).varint(0).unwrap(), (value, len));
                    let short = Span {
                        bytes: &bytes,
                        end: len - 1,
                    };
                    assert!(short.varint(0).is_err(), "value={value}");
                }
            }
        }
        let odd: [&[u8]; 6] = [
            &[0x80, 0x80, 0x00],
            &[0xff; 9],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[
                0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
            ],
            &[],
        ];
        for bytes in odd {
            let theirs = decode_varint(&mut &bytes[..]).ok();
            let ours = span(bytes).varint(0).ok().map(|(value, _)| value);
            assert_eq!(ours, theirs, "bytes={bytes:?}");
        }
    }

    #[test]
    fn groups_are_walked_over() {
        // Field 1, a group that holds group 2, then something behind it.
        let bytes = [0x0b, 0x13, 0x08, 0x01, 0x14, 0x0c, 0x55];
        assert_eq!(span(&bytes).skip(0x0b, 1, 9).unwrap(), 6);
        assert_eq!(span(&bytes).group(0x0b, 1, 9).unwrap(), (5, 6));
        assert!(span(&bytes).skip(0x0b, 1, 1).is_err(), "too deep");
        assert!(span(&bytes[..5]).skip(0x0b, 1, 9).is_err(), "cut");
        assert!(span(&[0x13, 0x0c]).skip(0x13, 1, 9).is_err(), "other end");
        assert!(span(&[0x0f]).skip(0x0f, 1, 9).is_err(), "wire type 7");
        assert!(span(&[0x00, 0x00]).skip(0, 1, 9).is_err(), "number 0");
    }
}
