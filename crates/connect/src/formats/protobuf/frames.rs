//! Messages one behind the other, each behind its length: how files and pipes hold them.

use bytes::Bytes;
use calve_engine::{Error, Reject, Result, batch::Messages};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire::Span;

/// How the length before each message is written, in files and on standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// As a varint: what Protobuf's libraries call delimited.
    #[default]
    Varint,
    /// In four bytes, the most significant first.
    U32Be,
}

/// What is at a place between messages.
enum Frame {
    /// A message, from and to.
    Whole(usize, usize),
    /// The beginning of one.
    Cut,
    /// No length.
    Wrong,
}

impl Framing {
    fn frame(self, bytes: &[u8], at: usize) -> Frame {
        let rest = &bytes[at..];
        let (len, from) = match self {
            Self::U32Be => match rest.first_chunk() {
                Some(len) => (u64::from(u32::from_be_bytes(*len)), at + 4),
                None => return Frame::Cut,
            },
            Self::Varint => {
                let end = bytes.len();
                match (Span { bytes, end }.varint(at), rest.len() < 10) {
                    (Ok(read), _) => read,
                    // Ten bytes hold any varint.
                    (Err(_), short) if short && rest.iter().all(|byte| *byte >= 0x80) => {
                        return Frame::Cut;
                    }
                    (Err(_), _) => return Frame::Wrong,
                }
            }
        };
        if len > u64::from(u32::MAX) {
            return Frame::Wrong;
        }
        if len > (bytes.len() - from) as u64 {
            return Frame::Cut;
        }
        Frame::Whole(from, from + len as usize)
    }

    /// Where the last whole message ends. What is wrong counts as one up to the end, so that whoever
    /// decodes it finds out.
    pub(crate) fn last_end(self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.frame(bytes, at) {
                Frame::Whole(_, to) => at = to,
                Frame::Cut => return at,
                Frame::Wrong => return bytes.len(),
            }
        }
        at
    }

    /// A message behind its length.
    pub(crate) fn frame_of(self, message: &[u8]) -> Vec<u8> {
        let mut framed = Vec::with_capacity(message.len() + 10);
        match self {
            Self::U32Be => framed.extend_from_slice(&(message.len() as u32).to_be_bytes()),
            Self::Varint => prost::encode_length_delimiter(message.len(), &mut framed)
                .expect("a vector has room"),
        }
        framed.extend_from_slice(message);
        framed
    }

    /// Where messages begin, with their lengths; also one that is cut off or has none.
    pub(crate) fn starts(self, bytes: &[u8]) -> Vec<usize> {
        let (mut starts, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            starts.push(at);
            let Frame::Whole(_, to) = self.frame(bytes, at) else {
                break;
            };
            at = to;
        }
        starts
    }

    /// The messages of bytes, of which byte 0 has offset `base`; one that is cut off at the end is a
    /// reject. The offset of a message is that of its length.
    ///
    /// # Errors
    /// `Config` where there is no length: nobody knows then where the next message begins.
    pub(super) fn messages(self, bytes: &[u8], base: u64) -> Result<(Messages, Option<Reject>)> {
        let mut messages = Messages::default();
        let mut packed = Vec::with_capacity(bytes.len());
        let mut at = 0;
        let mut cut = None;
        while at < bytes.len() {
            match self.frame(bytes, at) {
                Frame::Whole(from, to) => {
                    packed.extend_from_slice(&bytes[from..to]);
                    messages.ends.push(packed.len() as u32);
                    messages.offsets.push(base + at as u64);
                    messages.ordinals.push(0);
                    at = to;
                }
                Frame::Cut => {
                    cut = Some(Reject {
                        offset: base + at as u64,
                        raw: Bytes::copy_from_slice(&bytes[at..]),
                        error: "the input ends in the middle of a message".to_owned(),
                    });
                    break;
                }
                Frame::Wrong => {
                    return Err(Error::config(format!(
                        "the length of a message is malformed: offset={}",
                        base + at as u64
                    ))
                    .hint(
                        "the file is damaged, or `framing` does not say how lengths are written",
                    ));
                }
            }
        }
        messages.bytes = packed.into();
        Ok((messages, cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_lengths_say() {
        for (framing, bytes) in [
            (Framing::Varint, &[2, 8, 1, 0, 1, 8][..]),
            (
                Framing::U32Be,
                &[0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 0, 0, 0, 1, 8],
            ),
        ] {
            let (messages, cut) = framing.messages(bytes, 100).expect("right");
            assert_eq!(cut, None);
            let all: Vec<&[u8]> = (0..messages.len()).map(|at| messages.get(at)).collect();
            assert_eq!(all, [&[8, 1][..], &[], &[8]]);
            let ends: Vec<usize> = (0..=bytes.len())
                .map(|to| framing.last_end(&bytes[..to]))
                .collect();
            for (to, end) in ends.iter().enumerate() {
                let (whole, cut) = framing.messages(&bytes[..to], 7).expect("right");
                assert_eq!(
                    cut.map(|r| (r.offset, r.raw.len())),
                    (to > *end).then(|| (7 + *end as u64, to - end))
                );
                assert!(whole.len() <= 3);
            }
            assert_eq!(ends[bytes.len()], bytes.len());
        }
    }

    #[test]
    fn what_is_no_length_stops_the_pipeline() {
        let bytes = [
            1, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0,
        ];
        assert_eq!(Framing::Varint.last_end(&bytes), bytes.len());
        let error = Framing::Varint.messages(&bytes, 10).expect_err("no length");
        assert!(error.message().ends_with("offset=12"), "{error}");
        assert_eq!(
            Framing::Varint.last_end(&bytes[..6]),
            2,
            "may still become one"
        );
    }
}
