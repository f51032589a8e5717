//! How records and the heads of segments lie on the disk; all numbers little-endian.
//!
//! Every checksum begins with one of the log's random id, so that no payload can look like a record,
//! whatever a client sends. A record says how far the log was durable when it was written ([`Header::synced`]):
//! that tells a torn tail, which nobody was promised, from damage to what was acknowledged.

use calve_engine::Result;

use super::damaged;

/// Bytes before each payload.
pub(super) const HEADER_BYTES: usize = 88;
/// Bytes at the beginning of each segment.
pub(super) const SEGMENT_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"calvelog";
const VERSION: u32 = 1;
const RECORD: [u8; 2] = [0xca, 0x17];
const HAS_KEY: u8 = 1;

/// What the bytes of a payload are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Whole records of the format; a unit is a byte.
    Bytes,
    /// A stream of Arrow IPC; a unit is a row.
    Arrow,
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Arrow => 1,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Bytes, Self::Arrow]
            .into_iter()
            .find(|content| content.code() == code)
    }
}

/// What makes a request the same as another: digests of its idempotency key and of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) key: [u8; 16],
    pub(crate) body: [u8; 16],
}

/// A record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) payload_crc: u32,
    pub(super) payload_bytes: u32,
    /// How many offsets it covers: bytes or rows.
    pub(super) units: u32,
    /// The offset at which it begins.
    pub(super) position: u64,
    /// Everything before this offset was durable when the record was written.
    pub(super) synced: u64,
    /// When it came, in milliseconds since 1970.
    pub(super) time_ms: i64,
    /// Events that were accepted.
    pub(super) events: u32,
    /// Events of the same request that were refused.
    pub(super) refused: u32,
    pub(super) content: Content,
    pub(super) key: Option<Key>,
}

/// The log's random id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogId(pub(super) [u8; 16]);

impl LogId {
    pub(super) fn hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }

    /// For the checksum of what comes piece by piece.
    pub(super) fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(crc32fast::hash(&self.0))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..].first_chunk().copied().unwrap_or_default()
}

impl Header {
    pub(super) fn write(&self, id: LogId, out: &mut Vec<u8>) {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(4, &self.payload_crc.to_le_bytes());
        put(8, &self.payload_bytes.to_le_bytes());
        put(12, &self.units.to_le_bytes());
        put(16, &self.position.to_le_bytes());
        put(24, &self.synced.to_le_bytes());
        put(32, &self.time_ms.to_le_bytes());
        put(40, &self.events.to_le_bytes());
        put(44, &self.refused.to_le_bytes());
        put(48, &[self.content.code()]);
        put(50, &RECORD);
        if let Some(key) = &self.key {
            put(49, &[HAS_KEY]);
            put(56, &key.key);
            put(72, &key.body);
        }
        let crc = id.crc(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&bytes);
    }

    /// The record that begins with these bytes; none when there is none, or a damaged one.
    pub(super) fn read(id: LogId, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if bytes[50..52] != RECORD || u32_at(bytes, 0) != id.crc(&bytes[4..]) {
            return None;
        }
        let key = (bytes[49] & HAS_KEY != 0).then(|| Key {
            key: digest_at(bytes, 56),
            body: digest_at(bytes, 72),
        });
        Some(Self {
            payload_crc: u32_at(bytes, 4),
            payload_bytes: u32_at(bytes, 8),
            units: u32_at(bytes, 12),
            position: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
            time_ms: u64_at(bytes, 32) as i64,
            events: u32_at(bytes, 40),
            refused: u32_at(bytes, 44),
            content: Content::of(bytes[48])?,
            key,
        })
    }

    /// The offset behind it.
    pub(super) fn end(&self) -> u64 {
        self.position + u64::from(self.units)
    }
}

/// The head of the segment that begins at an offset.
pub(super) fn segment_head(id: LogId, base: u64) -> [u8; SEGMENT_BYTES] {
    let mut bytes = [0; SEGMENT_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(&id.0);
    bytes[28..36].copy_from_slice(&base.to_le_bytes());
    let crc = id.crc(&bytes[..36]);
    bytes[36..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Id and first offset of a segment; none when its head is damaged or cut off.
///
/// # Errors
/// `Corrupt` for a version that is not known.
pub(super) fn read_segment_head(bytes: &[u8]) -> Result<Option<(LogId, u64)>> {
    let Some(bytes) = bytes.get(..SEGMENT_BYTES) else {
        return Ok(None);
    };
    let id = LogId(digest_at(bytes, 12));
    if bytes[..8] != MAGIC || u32_at(bytes, 36) != id.crc(&bytes[..36]) {
        return Ok(None);
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Err(damaged(format!(
            "the log is of another version: version={version} known={VERSION}"
        ))
        .hint("run the version of calve that wrote it"));
    }
    Ok(Some((id, u64_at(bytes, 28))))
}
