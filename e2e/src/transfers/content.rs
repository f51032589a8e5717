//! What ledgers hold: the events of a real one, or made-up ones.

use std::fs;

use bytes::{Bytes, BytesMut};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::protocol::{
    asset::{Asset, IssuedAsset, asset::AssetType},
    token_transfer::{
        Burn, Clawback, EventMeta, Fee, Mint, MuxedInfo, TokenTransferEvent, Transfer,
        muxed_info::Content, token_transfer_event::Event,
    },
};
use crate::fixture;

/// Ledgers by their number.
pub trait Ledgers: Send + Sync {
    /// The events of a ledger, in order; empty for one without any.
    fn events(&self, ledger: u32) -> Vec<Bytes>;
    /// The last ledger that there is; none: the network goes on for ever.
    fn last(&self) -> Option<u32>;
}

/// The real ledger 53312000, again and again under other numbers.
pub struct Real {
    events: Vec<Bytes>,
    first: u32,
    last: u32,
}

impl Real {
    /// The real ledger, and one more without events behind it, which ends it. None: the fixture is not
    /// there.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn one() -> Option<Self> {
        let path = fixture("token-transfers/ledger-53312000.pb.lp")?;
        let mut bytes = Bytes::from(fs::read(path).expect("the real ledger"));
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = bytes.split_to(4);
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
            events.push(bytes.split_to(length as usize));
        }
        Some(Self {
            events,
            first: 53_312_000,
            last: 53_312_001,
        })
    }
}

impl Ledgers for Real {
    fn events(&self, ledger: u32) -> Vec<Bytes> {
        if ledger == self.first {
            self.events.clone()
        } else {
            Vec::new()
        }
    }

    fn last(&self) -> Option<u32> {
        Some(self.last)
    }
}

/// Made-up ledgers: the same for the same seed, each by itself.
pub struct Generated {
    /// Ledgers that are made again and again under other numbers; each has its events, and where in
    /// them the number and the time are.
    patterns: Vec<Vec<(Bytes, usize)>>,
    /// The last ledger; none: endless.
    pub last: Option<u32>,
    /// Every so many ledgers one has no events; zero: none.
    pub empty_every: u32,
}

/// Ledgers from which `Generated` makes all others.
const PATTERNS: u64 = 32;
/// So that every number has as many bytes as any other: 2^21 to 2^28.
const PATTERN_LEDGER: u32 = 1 << 22;
/// When ledger 0 closed, in seconds since 1970, and how much later each next one does.
const GENESIS: i64 = 1_600_000_000;
const SECONDS: i64 = 5;

impl Generated {
    /// Ledgers of about so many events.
    pub fn new(seed: u64, events: usize) -> Self {
        let pattern = |n| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed * PATTERNS + n);
            let count = rng.random_range(events / 2..=events + events / 2).max(1);
            let mut made = Vec::with_capacity(count);
            while made.len() < count {
                transaction(&mut rng, &mut made);
            }
            let encode = |event: TokenTransferEvent| {
                let meta = event.meta.as_ref().map_or(0, Message::encoded_len);
                // The tags of `meta` and of the ledger's number, and a length, stand before it.
                let at = 1 + prost::length_delimiter_len(meta) + 1;
                (Bytes::from(event.encode_to_vec()), at)
            };
            made.into_iter().map(encode).collect()
        };
        Self {
            patterns: (0..PATTERNS).map(pattern).collect(),
            last: None,
            empty_every: 0,
        }
    }

    /// The events of a ledger, as values.
    ///
    /// # Panics
    /// When an event is none.
    pub fn decoded(&self, ledger: u32) -> Vec<TokenTransferEvent> {
        let decode = |bytes: Bytes| TokenTransferEvent::decode(bytes).expect("an event");
        self.events(ledger).into_iter().map(decode).collect()
    }
}

/// Seven bits at a time, in as many bytes as the number before.
fn varint(into: &mut [u8], mut number: u64) {
    let last = into.len() - 1;
    for (at, byte) in into.iter_mut().enumerate() {
        *byte = (number & 0x7f) as u8 | if at < last { 0x80 } else { 0 };
        number >>= 7;
    }
}

impl Ledgers for Generated {
    fn events(&self, ledger: u32) -> Vec<Bytes> {
        assert!(
            (1 << 21..1 << 28).contains(&ledger),
            "a ledger's number takes four bytes"
        );
        if self.empty_every != 0 && ledger.is_multiple_of(self.empty_every) {
            return Vec::new();
        }
        let pattern = &self.patterns[ledger as usize % self.patterns.len()];
        let closed = GENESIS + i64::from(ledger) * SECONDS;
        // One allocation for a ledger.
        let bytes: usize = pattern.iter().map(|(event, _)| event.len()).sum();
        let mut all = BytesMut::with_capacity(bytes);
        let mut events = Vec::with_capacity(pattern.len());
        for (event, at) in pattern {
            all.extend_from_slice(event);
            varint(&mut all[*at..at + 4], u64::from(ledger));
            // Behind it: tag and length of the time, tag of its seconds.
            varint(&mut all[at + 7..at + 12], closed as u64);
            events.push(all.split().freeze());
        }
        events
    }

    fn last(&self) -> Option<u32> {
        self.last
    }
}

fn key(rng: &mut ChaCha8Rng, kind: char) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    // Few accounts, so that they come again.
    let mut of = ChaCha8Rng::seed_from_u64(u64::from(rng.random_range(0..500_u32)));
    let letters = (0..55).map(|_| char::from(LETTERS[of.random_range(0..32)]));
    std::iter::once(kind).chain(letters).collect()
}

fn asset(rng: &mut ChaCha8Rng) -> Option<Asset> {
    let asset_type = match rng.random_range(0..10) {
        0..5 => AssetType::Native(true),
        // Of a contract.
        9 => return None,
        n => AssetType::IssuedAsset(IssuedAsset {
            asset_code: ["USDC", "AQUA", "yXLM", "LONGERNAME12"][n - 5].to_owned(),
            issuer: format!(
                "G{}",
                "ISSUER234567".repeat(5).get(..55).unwrap_or_default()
            ),
        }),
    };
    Some(Asset {
        asset_type: Some(asset_type),
    })
}

/// A transaction: its fee, its operations (several events of which may have the same indexes), and
/// sometimes the refund of a part of the fee.
fn transaction(rng: &mut ChaCha8Rng, events: &mut Vec<TokenTransferEvent>) {
    let hash: [u8; 32] = rng.random();
    let digits =
        |byte: &u8| [byte >> 4, byte & 15].map(|n| char::from(b"0123456789abcdef"[n as usize]));
    let hash: String = hash.iter().flat_map(digits).collect();
    let index = events.len() as u32 + 1;
    let meta = |operation: Option<u32>, muxed: Option<Content>, contract: String| EventMeta {
        ledger_sequence: PATTERN_LEDGER,
        closed_at: Some(prost_types::Timestamp {
            seconds: GENESIS,
            nanos: 0,
        }),
        tx_hash: hash.clone(),
        transaction_index: index,
        operation_index: operation,
        contract_address: contract,
        to_muxed_info: muxed.map(|content| MuxedInfo {
            content: Some(content),
        }),
    };
    let payer = key(rng, 'G');
    let fee = |amount: i64| {
        Event::Fee(Fee {
            from: payer.clone(),
            asset: Some(Asset {
                asset_type: Some(AssetType::Native(true)),
            }),
            amount: amount.to_string(),
        })
    };
    let mut push = |meta, event| {
        events.push(TokenTransferEvent {
            meta: Some(meta),
            event: Some(event),
        });
    };
    push(meta(None, None, key(rng, 'C')), fee(100_000));
    for operation in 1..=rng.random_range(0..4) {
        // Up to three with the same key, as a payment over several offers makes them.
        for _ in 0..rng.random_range(1..4) {
            let (from, to) = (key(rng, 'G'), key(rng, 'G'));
            let (asset, contract) = (asset(rng), key(rng, 'C'));
            let amount = if rng.random_range(0..50) == 0 {
                "170141183460469231731687303715884105727".to_owned()
            } else {
                rng.random_range(1..1_000_000_000_000_i64).to_string()
            };
            let muxed = match rng.random_range(0..12) {
                0 => Some(Content::Id(rng.random())),
                1 => Some(Content::Text("invoice 17".to_owned())),
                2 => Some(Content::Hash(vec![7; 32])),
                _ => None,
            };
            let (event, muxed) = match rng.random_range(0..20) {
                0 => (Event::Mint(Mint { to, asset, amount }), muxed),
                1 => (
                    Event::Burn(Burn {
                        from,
                        asset,
                        amount,
                    }),
                    None,
                ),
                2 => (
                    Event::Clawback(Clawback {
                        from,
                        asset,
                        amount,
                    }),
                    None,
                ),
                _ => {
                    let transfer = Transfer {
                        from,
                        to,
                        asset,
                        amount,
                    };
                    (Event::Transfer(transfer), muxed)
                }
            };
            push(meta(Some(operation), muxed, contract), event);
        }
    }
    if rng.random_range(0..5) == 0 {
        push(meta(None, None, key(rng, 'C')), fee(-37_113));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ledgers_have_their_number_and_time() {
        let generated = Generated::new(1, 100);
        for ledger in [1 << 21, 53_312_000, (1 << 28) - 1] {
            let events = generated.decoded(ledger);
            assert!(events.len() >= 50);
            for event in events {
                let meta = event.meta.expect("meta");
                assert_eq!(meta.ledger_sequence, ledger);
                let closed = meta.closed_at.expect("a time");
                assert_eq!(closed.seconds, GENESIS + i64::from(ledger) * SECONDS);
                assert_eq!(meta.tx_hash.len(), 64);
                assert!(event.event.is_some());
            }
        }
    }

    #[test]
    fn the_real_ledger_is_whole() {
        let Some(real) = Real::one() else { return };
        assert_eq!(real.events(53_312_000).len(), 296);
    }
}
