//! Ledgers whose events are listed one by one: in a file, or by a test.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use prost::Message;
use serde_json::Value;

use super::{
    Ledgers,
    protocol::{
        asset::{Asset, IssuedAsset, asset::AssetType},
        token_transfer::{
            Burn, Clawback, EventMeta, Fee, Mint, MuxedInfo, TokenTransferEvent, Transfer,
            muxed_info::Content, token_transfer_event::Event,
        },
    },
};

/// Ledgers of listed events, and one more behind them, which ends them.
pub struct Listed(BTreeMap<u32, Vec<Bytes>>);

impl Listed {
    /// Ledgers of these events, in their order.
    pub fn new(events: impl IntoIterator<Item = TokenTransferEvent>) -> Self {
        let mut ledgers: BTreeMap<u32, Vec<Bytes>> = BTreeMap::new();
        for event in events {
            let ledger = event.meta.as_ref().map_or(0, |meta| meta.ledger_sequence);
            let bytes = Bytes::from(event.encode_to_vec());
            ledgers.entry(ledger).or_default().push(bytes);
        }
        Self(ledgers)
    }

    /// The events of a file: JSON as protobuf's mapping writes it, but for hashes, which are
    /// hexadecimal.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a file of events");
        Self::new(text.lines().map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            event(&line)
        }))
    }
}

impl Ledgers for Listed {
    fn events(&self, ledger: u32) -> Vec<Bytes> {
        self.0.get(&ledger).cloned().unwrap_or_default()
    }

    fn last(&self) -> Option<u32> {
        self.0.keys().last().map(|last| last + 1)
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn number(value: &Value) -> u32 {
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number.expect("a number")
}

fn event(line: &Value) -> TokenTransferEvent {
    let meta = &line["meta"];
    let muxed = meta.get("to_muxed_info").map(|info| MuxedInfo {
        content: info
            .as_object()
            .and_then(|info| info.iter().next())
            .map(content),
    });
    let fields = line.as_object().expect("an object");
    let (kind, body) = fields
        .iter()
        .find(|(name, _)| *name != "meta")
        .expect("a kind");
    TokenTransferEvent {
        meta: Some(EventMeta {
            ledger_sequence: number(&meta["ledger_sequence"]),
            closed_at: Some(text(&meta["closed_at"]).parse().expect("a time")),
            tx_hash: text(&meta["tx_hash"]),
            transaction_index: number(&meta["transaction_index"]),
            operation_index: meta.get("operation_index").map(number),
            contract_address: text(&meta["contract_address"]),
            to_muxed_info: muxed,
        }),
        event: Some(kind_of(kind, body)),
    }
}

fn content((kind, value): (&String, &Value)) -> Content {
    let text = text(value);
    match kind.as_str() {
        "id" => Content::Id(text.parse().expect("a number")),
        "text" => Content::Text(text),
        "hash" => {
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
            Content::Hash((0..text.len()).step_by(2).map(byte).collect())
        }
        other => panic!("no kind of muxed information: {other}"),
    }
}

fn kind_of(kind: &str, body: &Value) -> Event {
    let asset = body.get("asset").map(|asset| {
        let issued = asset.get("issued_asset").map(|issued| {
            AssetType::IssuedAsset(IssuedAsset {
                asset_code: text(&issued["asset_code"]),
                issuer: text(&issued["issuer"]),
            })
        });
        Asset {
            asset_type: issued.or(Some(AssetType::Native(true))),
        }
    });
    let amount = text(&body["amount"]);
    let from = || text(&body["from"]);
    let to = || text(&body["to"]);
    match kind {
        "transfer" => Event::Transfer(Transfer {
            from: from(),
            to: to(),
            asset,
            amount,
        }),
        "mint" => Event::Mint(Mint {
            to: to(),
            asset,
            amount,
        }),
        "burn" => Event::Burn(Burn {
            from: from(),
            asset,
            amount,
        }),
        "clawback" => Event::Clawback(Clawback {
            from: from(),
            asset,
            amount,
        }),
        "fee" => Event::Fee(Fee {
            from: from(),
            asset,
            amount,
        }),
        other => panic!("no kind of event: {other}"),
    }
}
