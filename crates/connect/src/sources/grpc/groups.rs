//! Puts messages together to batches of whole groups: messages with the same value of the resume
//! field, such as those of one ledger. Pure: no clock, no connection.
//!
//! Invariant: whatever happens to connections and processes, each message of a server that gives the
//! same order again is given out once. What was given out is a [`Mark`]: the value of the last group,
//! and how many messages of it were taken. A group is known to be whole when a later value came; one
//! that was ended by silence, or by the end of the stream, may still get more, which go on with its
//! count. Start with [`Groups::push`].

use calve_engine::{Error, Result, batch::Messages};
use prost_reflect::MessageDescriptor;
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

use super::likeness;
use crate::sources::buffers::Buffers;

/// What a message takes beside its bytes: where it ends, its offset and its ordinal.
const MESSAGE_BYTES: usize = 16;

/// How far a stream was taken. Stored in [`calve_model::Position::tag`]; the value is the offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Value of the last group.
    #[serde(skip)]
    pub(super) value: u64,
    /// Messages of it that were taken; zero: nothing was ever read.
    pub(super) count: u32,
    /// No more messages of it can come.
    pub(super) whole: bool,
    /// The last message of it, to know it again where the group is not whole: see [`likeness`]. None: it is
    /// told by its count alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "parts_or_older")]
    pub(super) last: Vec<u32>,
    /// The bound of the request (inclusive), when the stream had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<u64>,
}

impl Mark {
    /// What a position says. An offset that somebody named (without a tag) counts as a whole group.
    ///
    /// # Errors
    /// `Corrupt` when its tag cannot be read.
    pub(super) fn of(offset: u64, tag: Option<&str>) -> Result<Self> {
        let stored = match tag {
            None => Self {
                count: 1,
                whole: true,
                ..Self::default()
            },
            Some(tag) => serde_json::from_str(tag).map_err(|error| {
                Error::corrupt(format!(
                    "the checkpoint's position in the stream cannot be read: offset={offset}"
                ))
                .because(error)
                .hint("run the version of calve that wrote it")
            })?,
        };
        Ok(Self {
            value: offset,
            ..stored
        })
    }

    pub(super) fn print(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// Nothing was read yet.
    pub(super) fn is_start(&self) -> bool {
        self.count == 0
    }
}

/// Earlier builds kept the size and a digest of the last message, which say nothing of its parts.
fn parts_or_older<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Last {
        Parts(Vec<u32>),
        Older {
            #[serde(rename = "bytes")]
            _bytes: IgnoredAny,
            #[serde(rename = "sha")]
            _sha: IgnoredAny,
        },
    }
    Ok(match Last::deserialize(deserializer)? {
        Last::Parts(parts) => parts,
        Last::Older { .. } => Vec::new(),
    })
}

/// Whole groups, with what they cover.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) messages: Messages,
    /// What was taken before them.
    pub(super) from: u64,
    /// What was taken with them.
    pub(super) mark: Mark,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It was taken before.
    Known,
    /// It belongs to the group that is open.
    Open,
    /// It begins a group, and so ends the one before it.
    Next,
}

/// Messages on their way to batches.
pub(super) struct Groups {
    buffers: Buffers,
    bytes: Vec<u8>,
    ends: Vec<u32>,
    values: Vec<u64>,
    ordinals: Vec<u32>,
    /// The first so many messages are of complete groups.
    complete: usize,
    /// What was given out in batches.
    given: Mark,
    /// What is complete, given out or not.
    front: Mark,
    /// The group that messages are added to, with all messages of it that ever came. None: the next
    /// message begins one, or is of `front`.
    open: Option<(u64, u32)>,
    /// Since the stream was opened, messages came that were taken before, and none beyond.
    behind: bool,
    /// Messages of `front` that the stream has given again.
    again: u32,
    /// The value that the stream gave last.
    last: Option<u64>,
    limits: Limits,
    /// The type of the messages, to know them again.
    of: Option<MessageDescriptor>,
}

/// What groups and batches may be. Bytes count what messages take beside their own bytes, too.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// So much makes a batch.
    pub(super) batch_bytes: usize,
    /// A group of more is an error.
    pub(super) group_bytes: usize,
    /// Messages that come again are told by their count alone.
    pub(super) trust_order: bool,
}

impl Groups {
    /// Goes on behind `given`.
    pub(super) fn new(given: Mark, limits: Limits, of: Option<MessageDescriptor>) -> Self {
        Self {
            buffers: Buffers::default(),
            bytes: Vec::new(),
            ends: Vec::new(),
            values: Vec::new(),
            ordinals: Vec::new(),
            complete: 0,
            front: given.clone(),
            given,
            open: None,
            behind: true,
            again: 0,
            last: None,
            limits,
            of,
        }
    }

    /// What is complete: a new stream goes on behind it.
    pub(super) fn front(&self) -> &Mark {
        &self.front
    }

    /// A new stream begins, from `front` on: the messages of a group that is not complete come again.
    pub(super) fn restart(&mut self) {
        let complete = self.complete;
        self.bytes.truncate(self.complete_bytes());
        self.ends.truncate(complete);
        self.values.truncate(complete);
        self.ordinals.truncate(complete);
        self.open = None;
        self.behind = true;
        self.again = 0;
        self.last = None;
    }

    /// Takes the next message of the stream.
    ///
    /// # Errors
    /// `Corrupt` when the server gives another order than before, or values go back; `Config` when a
    /// group is too large.
    pub(super) fn push(&mut self, value: u64, message: &[u8]) -> Result<Pushed> {
        self.last = Some(value);
        if self.behind && !self.front.is_start() {
            if value < self.front.value || (value == self.front.value && self.front.whole) {
                return Ok(Pushed::Known);
            }
            if value == self.front.value && self.again < self.front.count {
                self.again += 1;
                return self.same(message);
            }
            if !self.front.whole && self.again < self.front.count {
                return Err(Error::corrupt(format!(
                    "the server gives fewer messages of a group than before: value={} taken={} given={}",
                    self.front.value, self.front.count, self.again
                ))
                .hint(OTHER_ORDER));
            }
            self.open = Some((self.front.value, self.front.count));
        }
        self.behind = false;
        let pushed = match self.open {
            Some((open, _)) if value < open => {
                return Err(Error::corrupt(format!(
                    "the values of the stream go back: value={value} after={open}"
                ))
                .hint("`resume.from_column` must name a field that never falls"));
            }
            Some((open, count)) if value == open => {
                self.open = Some((open, count + 1));
                self.ordinals.push(count);
                Pushed::Open
            }
            _ => {
                self.end_of_group(true);
                self.open = Some((value, 1));
                self.ordinals.push(0);
                Pushed::Next
            }
        };
        self.reserve();
        self.bytes.extend_from_slice(message);
        self.values.push(value);
        let open = self.values.len() - self.complete;
        let open_bytes = self.bytes.len() - self.complete_bytes() + MESSAGE_BYTES * open;
        if open_bytes > self.limits.group_bytes {
            return Err(Error::config(format!(
                "a group of messages is larger than max_group_bytes: value={value} max_group_bytes={}",
                self.limits.group_bytes
            ))
            .hint(
                "a group is held in memory until it is whole: raise `resume.max_group_bytes` (and \
                 `limits.memory`), or choose a finer `resume.from_column`",
            ));
        }
        // A batch is at most the limits of batch and group, far below 4 GiB (`GrpcConfig::validate`).
        self.ends.push(self.bytes.len() as u32);
        Ok(pushed)
    }

    /// Takes a message whose value cannot be read. It is of the group that is being read, as far as anybody
    /// can tell, each time it comes; where a stream begins with it, it was taken with the group before.
    /// None: nothing was ever read that it could belong to.
    ///
    /// # Errors
    /// Those of [`Groups::push`].
    pub(super) fn push_unread(&mut self, message: &[u8]) -> Result<Option<Pushed>> {
        match self.last {
            Some(last) => self.push(last, message).map(Some),
            None => Ok((!self.front.is_start()).then_some(Pushed::Known)),
        }
    }

    /// Takes a message that stands by itself; its offset counts messages.
    pub(super) fn push_alone(&mut self, message: &[u8]) {
        self.reserve();
        self.bytes.extend_from_slice(message);
        self.ends.push(self.bytes.len() as u32);
        self.values.push(self.front.value);
        self.ordinals.push(0);
        self.complete = self.ends.len();
        self.front = Mark {
            value: self.front.value + 1,
            count: 1,
            whole: true,
            ..Mark::default()
        };
    }

    fn reserve(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = self.buffers.take(self.room());
        }
    }

    fn room(&self) -> usize {
        self.limits.batch_bytes + self.limits.batch_bytes / 8
    }

    /// Whether the last message that was taken before is the one that came again.
    fn same(&self, message: &[u8]) -> Result<Pushed> {
        if self.again < self.front.count {
            return Ok(Pushed::Known);
        }
        let like = || {
            likeness::is_like(
                &self.front.last,
                &likeness::parts(message, self.of.as_ref()),
            )
        };
        if self.limits.trust_order || like() {
            return Ok(Pushed::Known);
        }
        Err(Error::corrupt(format!(
            "the server gives another message than before: value={} ordinal={}",
            self.front.value,
            self.front.count - 1
        ))
        .hint(format!(
            "{OTHER_ORDER}. If only the form of its messages has changed, `trust_order: true` goes on by their \
             count"
        )))
    }

    /// The open group gets no more messages for now (silence, the end of the stream): it is complete,
    /// though not known to be whole. True when there was one.
    pub(super) fn end_open(&mut self) -> bool {
        let had = self.complete < self.ends.len();
        self.end_of_group(false);
        had
    }

    fn end_of_group(&mut self, whole: bool) {
        let Some((value, count)) = self.open else {
            return;
        };
        if whole {
            self.front = Mark {
                value,
                count,
                whole,
                ..Mark::default()
            };
        } else if self.complete < self.ends.len() {
            let last = self.ends.len() - 1;
            let begin = if last == 0 {
                0
            } else {
                self.ends[last - 1] as usize
            };
            self.front = Mark {
                value,
                count,
                whole,
                last: likeness::kept(&self.bytes[begin..], self.of.as_ref()),
                until: None,
            };
        }
        self.complete = self.ends.len();
    }

    fn complete_bytes(&self) -> usize {
        match self.complete {
            0 => 0,
            n => self.ends[n - 1] as usize,
        }
    }

    /// Whether there are complete groups.
    pub(super) fn has_complete(&self) -> bool {
        self.complete > 0
    }

    /// Whether more is complete than what was given out, and how much.
    pub(super) fn complete(&self) -> usize {
        self.complete
    }

    /// So much makes a batch from now on.
    pub(super) fn ask(&mut self, bytes: usize) {
        self.limits.batch_bytes = bytes;
    }

    /// Whether complete groups make a batch.
    pub(super) fn is_full(&self) -> bool {
        self.complete_bytes() + MESSAGE_BYTES * self.complete >= self.limits.batch_bytes
    }

    /// Whether messages wait for the rest of their group.
    pub(super) fn has_open(&self) -> bool {
        self.complete < self.ends.len()
    }

    /// Value and count of the group whose messages wait for the rest of it.
    pub(super) fn open(&self) -> Option<(u64, u32)> {
        self.open.filter(|_| self.has_open())
    }

    /// Gives out what is complete. Messages that go on with a group of which some were given out
    /// before come by themselves, so that the offsets of a batch are within its range.
    pub(super) fn take(&mut self) -> Option<Taken> {
        if self.complete == 0 {
            return None;
        }
        let from = self.given.value;
        let mut count = self.complete;
        let mut mark = self.front.clone();
        if self.values[0] == from && self.ordinals[0] > 0 && self.values[count - 1] != from {
            count = self.values[..count].partition_point(|value| *value == from);
            mark = Mark {
                value: from,
                count: self.ordinals[count - 1] + 1,
                whole: true,
                ..Mark::default()
            };
        }
        let end = self.ends[count - 1] as usize;
        let mut rest = Vec::new();
        if end < self.bytes.len() {
            rest = self.buffers.take(self.room());
            rest.extend_from_slice(&self.bytes[end..]);
        }
        let mut bytes = std::mem::replace(&mut self.bytes, rest);
        bytes.truncate(end);
        let mut ends = split(&mut self.ends, count);
        for at in &mut self.ends {
            *at -= end as u32;
        }
        ends.shrink_to_fit();
        self.complete -= count;
        self.given = mark.clone();
        Some(Taken {
            messages: Messages {
                bytes: self.buffers.share(bytes),
                ends,
                offsets: split(&mut self.values, count),
                ordinals: split(&mut self.ordinals, count),
            },
            from,
            mark,
        })
    }

    /// What was given out.
    pub(super) fn given(&self) -> &Mark {
        &self.given
    }
}

const OTHER_ORDER: &str = "a restart in the middle of a group needs a server that gives the same messages in the \
     same order again; `resume.idle` longer than the server's pauses keeps groups from being cut";

/// The first `count` of a list; the rest stays.
fn split<T>(list: &mut Vec<T>, count: usize) -> Vec<T> {
    let rest = list.split_off(count);
    std::mem::replace(list, rest)
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
