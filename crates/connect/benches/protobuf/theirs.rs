//! Token transfers as structs of prost, written by hand, and Arrow's builders for their columns.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, Decimal128Builder, DictionaryArray, FixedSizeBinaryBuilder,
        Int32Builder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondBuilder,
        UInt32Builder,
    },
    datatypes::{Int32Type, SchemaRef},
};
use calve_engine::batch::Messages;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, Value};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TokenTransferEvent {
    #[prost(message, optional, tag = "1")]
    pub(crate) meta: Option<EventMeta>,
    #[prost(oneof = "Event", tags = "2, 3, 4, 5, 6")]
    pub(crate) event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Event {
    #[prost(message, tag = "2")]
    Transfer(Transfer),
    #[prost(message, tag = "3")]
    Mint(Mint),
    #[prost(message, tag = "4")]
    Burn(Burn),
    #[prost(message, tag = "5")]
    Clawback(Burn),
    #[prost(message, tag = "6")]
    Fee(Burn),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EventMeta {
    #[prost(uint32, tag = "1")]
    pub(crate) ledger_sequence: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) closed_at: Option<prost_types::Timestamp>,
    #[prost(string, tag = "3")]
    pub(crate) tx_hash: String,
    #[prost(uint32, tag = "4")]
    pub(crate) transaction_index: u32,
    #[prost(uint32, optional, tag = "5")]
    pub(crate) operation_index: Option<u32>,
    #[prost(string, tag = "6")]
    pub(crate) contract_address: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) to_muxed_info: Option<MuxedInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MuxedInfo {
    #[prost(oneof = "MuxedContent", tags = "1, 2, 3")]
    pub(crate) content: Option<MuxedContent>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum MuxedContent {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(uint64, tag = "2")]
    Id(u64),
    #[prost(bytes, tag = "3")]
    Hash(Vec<u8>),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Asset {
    #[prost(oneof = "AssetType", tags = "1, 2")]
    pub(crate) asset_type: Option<AssetType>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum AssetType {
    #[prost(bool, tag = "1")]
    Native(bool),
    #[prost(message, tag = "2")]
    IssuedAsset(IssuedAsset),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct IssuedAsset {
    #[prost(string, tag = "1")]
    pub(crate) asset_code: String,
    #[prost(string, tag = "2")]
    pub(crate) issuer: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Transfer {
    #[prost(string, tag = "1")]
    pub(crate) from: String,
    #[prost(string, tag = "2")]
    pub(crate) to: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) asset: Option<Asset>,
    #[prost(string, tag = "4")]
    pub(crate) amount: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mint {
    #[prost(string, tag = "1")]
    pub(crate) to: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) asset: Option<Asset>,
    #[prost(string, tag = "3")]
    pub(crate) amount: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Burn {
    #[prost(string, tag = "1")]
    pub(crate) from: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) asset: Option<Asset>,
    #[prost(string, tag = "3")]
    pub(crate) amount: String,
}

/// What becomes of an event, wherever it was read from.
#[derive(Default)]
struct Row<'a> {
    seconds: i64,
    nanos: i32,
    ledger: u32,
    hash: &'a str,
    transaction: u32,
    operation: Option<u32>,
    kind: i32,
    from: Option<&'a str>,
    to: Option<&'a str>,
    asset: i32,
    code: Option<&'a str>,
    issuer: Option<&'a str>,
    contract: &'a str,
    amount: &'a str,
    text: Option<&'a str>,
    id: Option<u64>,
    bytes: Option<&'a [u8]>,
}

struct Builders {
    timestamp: TimestampMicrosecondBuilder,
    ledger: UInt32Builder,
    hash: FixedSizeBinaryBuilder,
    transaction: UInt32Builder,
    operation: UInt32Builder,
    index: UInt32Builder,
    kind: Int32Builder,
    from: StringBuilder,
    to: StringBuilder,
    asset: Int32Builder,
    code: StringBuilder,
    issuer: StringBuilder,
    contract: StringBuilder,
    amount: StringBuilder,
    memo: StringBuilder,
    id: Decimal128Builder,
    bytes: BinaryBuilder,
}

const NONE: u8 = 0xff;

/// The values of hexadecimal digits.
const HEX: [u8; 256] = {
    let mut table = [NONE; 256];
    let mut n = 0;
    while n < 16 {
        table[b"0123456789abcdef"[n] as usize] = n as u8;
        n += 1;
    }
    table
};

fn unhex(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    assert_eq!(text.len(), 64);
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        let (high, low) = (HEX[usize::from(pair[0])], HEX[usize::from(pair[1])]);
        assert!(high != NONE && low != NONE);
        *byte = high << 4 | low;
    }
    bytes
}

impl Builders {
    fn new(rows: usize) -> Self {
        let strings = |each: usize| StringBuilder::with_capacity(rows, rows * each);
        Self {
            timestamp: TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC"),
            ledger: UInt32Builder::with_capacity(rows),
            hash: FixedSizeBinaryBuilder::with_capacity(rows, 32),
            transaction: UInt32Builder::with_capacity(rows),
            operation: UInt32Builder::with_capacity(rows),
            index: UInt32Builder::with_capacity(rows),
            kind: Int32Builder::with_capacity(rows),
            from: strings(56),
            to: strings(56),
            asset: Int32Builder::with_capacity(rows),
            code: strings(4),
            issuer: strings(56),
            contract: strings(56),
            amount: strings(12),
            memo: strings(1),
            id: Decimal128Builder::with_capacity(rows)
                .with_precision_and_scale(20, 0)
                .expect("a right precision"),
            bytes: BinaryBuilder::new(),
        }
    }

    fn push(&mut self, row: &Row<'_>, index: u32) {
        let micros = row.seconds * 1_000_000 + i64::from(row.nanos / 1000);
        self.timestamp.append_value(micros);
        self.ledger.append_value(row.ledger);
        self.hash.append_value(unhex(row.hash)).expect("32 bytes");
        self.transaction.append_value(row.transaction);
        self.operation.append_option(row.operation);
        self.index.append_value(index);
        self.kind.append_value(row.kind);
        self.from.append_option(row.from);
        self.to.append_option(row.to);
        self.asset.append_value(row.asset);
        self.code.append_option(row.code);
        self.issuer.append_option(row.issuer);
        self.contract.append_value(row.contract);
        self.amount.append_value(row.amount);
        match (row.text, row.id) {
            (None, Some(id)) => self.memo.append_value(id.to_string()),
            (text, _) => self.memo.append_option(text),
        }
        self.id.append_option(row.id.map(i128::from));
        self.bytes.append_option(row.bytes);
    }

    fn finish(mut self, schema: &SchemaRef) -> RecordBatch {
        let words = |mut keys: Int32Builder, words: &[&str]| -> ArrayRef {
            let words = StringArray::from_iter_values(words);
            let array = DictionaryArray::<Int32Type>::try_new(keys.finish(), Arc::new(words));
            Arc::new(array.expect("keys of words"))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.timestamp.finish()),
            Arc::new(self.ledger.finish()),
            Arc::new(self.hash.finish()),
            Arc::new(self.transaction.finish()),
            Arc::new(self.operation.finish()),
            Arc::new(self.index.finish()),
            words(self.kind, &["transfer", "mint", "burn", "clawback", "fee"]),
            Arc::new(self.from.finish()),
            Arc::new(self.to.finish()),
            words(self.asset, &["native", "issued", "custom"]),
            Arc::new(self.code.finish()),
            Arc::new(self.issuer.finish()),
            Arc::new(self.contract.finish()),
            Arc::new(self.amount.finish()),
            Arc::new(self.memo.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.bytes.finish()),
        ];
        RecordBatch::try_new(schema.clone(), columns).expect("the columns of the schema")
    }
}

fn asset<'a>(row: &mut Row<'a>, asset: Option<&'a Asset>) {
    match asset.and_then(|asset| asset.asset_type.as_ref()) {
        Some(AssetType::Native(_)) => row.code = Some("XLM"),
        Some(AssetType::IssuedAsset(issued)) => {
            row.asset = 1;
            row.code = Some(&issued.asset_code);
            row.issuer = Some(&issued.issuer);
        }
        None => row.asset = 2,
    }
}

/// Decodes into rows of a schema.
pub(crate) struct Static {
    schema: SchemaRef,
}

impl Static {
    pub(crate) fn new(schema: &SchemaRef) -> Self {
        Self {
            schema: schema.clone(),
        }
    }

    pub(crate) fn decode(&self, messages: &Messages) -> RecordBatch {
        let mut builders = Builders::new(messages.len());
        for at in 0..messages.len() {
            let event = TokenTransferEvent::decode(messages.get(at)).expect("an event");
            let meta = event.meta.as_ref().expect("meta");
            let closed_at = meta.closed_at.as_ref().expect("a time");
            let mut row = Row {
                seconds: closed_at.seconds,
                nanos: closed_at.nanos,
                ledger: meta.ledger_sequence,
                hash: &meta.tx_hash,
                transaction: meta.transaction_index,
                operation: meta.operation_index,
                contract: &meta.contract_address,
                ..Row::default()
            };
            let muxed = meta.to_muxed_info.as_ref();
            match muxed.and_then(|muxed| muxed.content.as_ref()) {
                Some(MuxedContent::Text(text)) => row.text = Some(text),
                Some(MuxedContent::Id(id)) => row.id = Some(*id),
                Some(MuxedContent::Hash(bytes)) => row.bytes = Some(bytes),
                None => {}
            }
            match event.event.as_ref().expect("a kind") {
                Event::Transfer(of) => {
                    (row.from, row.to) = (Some(of.from.as_str()), Some(of.to.as_str()));
                    row.amount = &of.amount;
                    asset(&mut row, of.asset.as_ref());
                }
                Event::Mint(of) => {
                    (row.kind, row.to, row.amount) = (1, Some(of.to.as_str()), &of.amount);
                    asset(&mut row, of.asset.as_ref());
                }
                Event::Burn(of) | Event::Clawback(of) | Event::Fee(of) => {
                    let kind = match event.event.as_ref() {
                        Some(Event::Burn(_)) => 2,
                        Some(Event::Clawback(_)) => 3,
                        _ => 4,
                    };
                    (row.kind, row.from, row.amount) = (kind, Some(of.from.as_str()), &of.amount);
                    asset(&mut row, of.asset.as_ref());
                }
            }
            builders.push(&row, messages.ordinals[at]);
        }
        builders.finish(&self.schema)
    }

    pub(crate) fn decode_dynamic(
        &self,
        of: &MessageDescriptor,
        messages: &Messages,
    ) -> RecordBatch {
        let mut builders = Builders::new(messages.len());
        for at in 0..messages.len() {
            let event = DynamicMessage::decode(of.clone(), messages.get(at)).expect("an event");
            let meta = message(&event, 1).expect("meta");
            let closed_at = message(meta, 2).expect("a time");
            let mut row = Row {
                seconds: field(closed_at, 1).as_i64().expect("seconds"),
                nanos: field(closed_at, 2).as_i32().expect("nanos"),
                ledger: field(meta, 1).as_u32().expect("a number"),
                hash: text(meta, 3),
                transaction: field(meta, 4).as_u32().expect("a number"),
                operation: meta
                    .has_field_by_number(5)
                    .then(|| field(meta, 5).as_u32())
                    .flatten(),
                contract: text(meta, 6),
                ..Row::default()
            };
            if let Some(muxed) = message(meta, 7) {
                row.text = muxed.has_field_by_number(1).then(|| text(muxed, 1));
                row.id = muxed
                    .has_field_by_number(2)
                    .then(|| field(muxed, 2).as_u64())
                    .flatten();
            }
            let number = (2..=6).find(|number| event.has_field_by_number(*number));
            let number = number.expect("a kind");
            let body = message(&event, number).expect("a kind");
            row.kind = number as i32 - 2;
            let (from, to, asset, amount) = match number {
                2 => (Some(1), Some(2), 3, 4),
                3 => (None, Some(1), 2, 3),
                _ => (Some(1), None, 2, 3),
            };
            row.from = from.map(|number| text(body, number));
            row.to = to.map(|number| text(body, number));
            row.amount = text(body, amount);
            row.asset = 2;
            if let Some(asset) = message(body, asset) {
                if asset.has_field_by_number(1) {
                    (row.asset, row.code) = (0, Some("XLM"));
                } else if let Some(issued) = message(asset, 2) {
                    (row.asset, row.code, row.issuer) =
                        (1, Some(text(issued, 1)), Some(text(issued, 2)));
                }
            }
            builders.push(&row, messages.ordinals[at]);
        }
        builders.finish(&self.schema)
    }
}

fn field(message: &DynamicMessage, number: u32) -> Cow<'_, Value> {
    message.get_field_by_number(number).expect("a field")
}

fn message(of: &DynamicMessage, number: u32) -> Option<&DynamicMessage> {
    match field(of, number) {
        Cow::Borrowed(Value::Message(message)) => Some(message),
        _ => None,
    }
}

fn text(of: &DynamicMessage, number: u32) -> &str {
    match field(of, number) {
        Cow::Borrowed(Value::String(text)) => text,
        _ => "",
    }
}
