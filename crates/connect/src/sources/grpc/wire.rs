//! Protobuf's wire format, as far as it takes to find fields in a message and to pass over others.

/// Deeper groups than this are no messages that anyone sends.
const MOST_GROUPS: usize = 100;

/// Why a message has no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The field is not there.
    Missing,
    /// It is below zero (or before 1970), or beyond 64 bits.
    Range,
    /// The bytes are no message.
    Malformed,
}

impl Unreadable {
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Missing => "a message lacks the field",
            Self::Range => "the field is below zero, or too large",
            Self::Malformed => "a message is no protobuf",
        }
    }
}

/// Bytes of a message that are not read yet.
pub(super) struct Wire<'a>(pub(super) &'a [u8]);

impl<'a> Wire<'a> {
    pub(super) fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                // The tenth byte holds one bit.
                if at == 9 && *byte > 1 {
                    break;
                }
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(Unreadable::Malformed)
    }

    /// Field number and wire type.
    pub(super) fn key(&mut self) -> Result<(u32, u8), Unreadable> {
        let key = u32::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        match key >> 3 {
            0 => Err(Unreadable::Malformed),
            number => Ok((number, (key & 7) as u8)),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(Unreadable::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn block(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = usize::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        self.take(length)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Unreadable::Malformed)
    }

    pub(super) fn skip(&mut self, number: u32, kind: u8) -> Result<(), Unreadable> {
        match kind {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.block().map(drop),
            5 => self.take(4).map(drop),
            3 => self.skip_group(number),
            _ => Err(Unreadable::Malformed),
        }
    }

    fn skip_group(&mut self, number: u32) -> Result<(), Unreadable> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            match self.key()? {
                (number, 4) if number == innermost => {
                    open.pop();
                }
                (number, 3) if open.len() < MOST_GROUPS => open.push(number),
                (_, 3 | 4) => return Err(Unreadable::Malformed),
                (number, kind) => self.skip(number, kind)?,
            }
        }
        Ok(())
    }
}
