//! The mapping of Stellar's token transfers: one row for each event, whichever of the five kinds it is.

use std::collections::BTreeMap;

use calve_engine::{Error, Result};
use prost_reflect::DescriptorPool;
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver},
};

use super::config::{ColumnConfig, Encoding, Mapping, Otherwise, ProtobufConfig};

/// The full name of the message.
pub const TOKEN_TRANSFER: &str = "token_transfer.TokenTransferEvent";

/// The full name of the method that streams it.
pub const GET_TOKEN_TRANSFERS: &str = "token_transfer_service.EventService/GetTTPEvents";

const FILES: [(&str, &str); 3] = [
    ("asset.proto", include_str!("../../../proto/asset.proto")),
    (
        "token_transfer.proto",
        include_str!("../../../proto/token_transfer.proto"),
    ),
    (
        "event_service.proto",
        include_str!("../../../proto/event_service.proto"),
    ),
];

/// The embedded `.proto` files by their names.
struct Embedded;

impl FileResolver for Embedded {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match FILES.iter().find(|(known, _)| *known == name) {
            Some((name, source)) => File::from_source(name, source),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The types of token transfers and of the service that streams them, from calve's own `.proto` files.
///
/// # Errors
/// `Internal`: the files are part of the program.
pub fn token_transfer_types() -> Result<DescriptorPool> {
    let mut files = ChainFileResolver::new();
    files.add(Embedded);
    files.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(files);
    compiler
        .open_file("event_service.proto")
        .map_err(|error| Error::internal("the embedded .proto files are wrong").because(error))?;
    Ok(compiler.descriptor_pool())
}

/// `<kind>.<field>` for each kind that has the field.
fn of(kinds: &[&str], field: &str) -> Vec<String> {
    kinds.iter().map(|kind| format!("{kind}.{field}")).collect()
}

fn words(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, word): &(&str, &str)| ((*name).to_owned(), (*word).to_owned());
    pairs.iter().map(owned).collect()
}

/// Token transfers as rows, the columns of the table included.
///
/// A mint has no source; a burn, a clawback and a fee have no destination: null. `asset_type` tells
/// `native` (code `XLM`, no issuer), `issued` (code and issuer) and `custom` (neither: the token is its
/// `contract_address`) apart. `amount` is the number as it came, in digits. `memo` is whatever the
/// sender attached, as text: its text, the digits of its id, or the hexadecimal digits of its hash.
/// `event_index` is the event's place in its ledger, from 0, when messages of a ledger share an offset.
///
/// # Errors
/// `Internal`, as [`token_transfer_types`].
pub fn token_transfers() -> Result<ProtobufConfig> {
    const ALL: &[&str] = &["transfer", "mint", "burn", "clawback", "fee"];
    let path = |path: &str| ColumnConfig::path(&[path]);
    let paths = |path| ColumnConfig {
        path,
        ..ColumnConfig::default()
    };
    let typed = |column: ColumnConfig, of: &str| ColumnConfig {
        of: Some(of.to_owned()),
        ..column
    };
    let required = |column: ColumnConfig| ColumnConfig {
        required: true,
        ..column
    };
    let hex = |column: ColumnConfig| ColumnConfig {
        encoding: Some(Encoding::Hex),
        ..column
    };
    let asset_types = of(ALL, "asset.asset_type");
    let event_index = ColumnConfig {
        ordinal: true,
        ..ColumnConfig::default()
    };
    let event_type = ColumnConfig {
        case: vec!["event".to_owned()],
        ..ColumnConfig::default()
    };
    let asset_type = ColumnConfig {
        case: asset_types.clone(),
        names: words(&[("native", "native"), ("issued_asset", "issued")]),
        absent: Some("custom".to_owned()),
        ..ColumnConfig::default()
    };
    let asset_code = ColumnConfig {
        path: of(ALL, "asset.issued_asset.asset_code"),
        otherwise: Some(Otherwise {
            case: asset_types,
            names: words(&[("native", "XLM")]),
            absent: None,
        }),
        ..ColumnConfig::default()
    };
    let muxed = |field: &str| format!("meta.to_muxed_info.{field}");
    let memo = paths(vec![muxed("text"), muxed("id"), muxed("hash")]);
    let hash = hex(path("meta.tx_hash"));
    let columns = [
        ("timestamp", required(path("meta.closed_at"))),
        ("ledger_sequence", required(path("meta.ledger_sequence"))),
        (
            "transaction_hash",
            required(typed(hash, "fixed_size_binary(32)")),
        ),
        (
            "transaction_index",
            required(path("meta.transaction_index")),
        ),
        ("operation_index", path("meta.operation_index")),
        ("event_index", required(event_index)),
        ("event_type", required(event_type)),
        (
            "source_account",
            paths(of(&["transfer", "burn", "clawback", "fee"], "from")),
        ),
        ("dest_account", paths(of(&["transfer", "mint"], "to"))),
        ("asset_type", required(asset_type)),
        ("asset_code", asset_code),
        ("asset_issuer", paths(of(ALL, "asset.issued_asset.issuer"))),
        ("contract_address", path("meta.contract_address")),
        ("amount", required(paths(of(ALL, "amount")))),
        ("memo", hex(typed(memo, "varchar"))),
        // 64 bits without a sign fit no integer of Iceberg.
        ("muxed_id", typed(path(&muxed("id")), "decimal(20, 0)")),
        ("muxed_hash", path(&muxed("hash"))),
    ];
    let columns = columns.map(|(name, column)| (name.to_owned(), column));
    Ok(ProtobufConfig {
        message: Some(TOKEN_TRANSFER.to_owned()),
        columns: Some(Mapping(columns.into())),
        pool: Some(token_transfer_types()?),
        ..ProtobufConfig::default()
    })
}

/// The amount once more as a number, for those who add it to the columns. An amount of 39 digits, which
/// 128 bits allow for, makes its event a reject.
pub fn decimal_amount() -> (String, ColumnConfig) {
    let column = ColumnConfig {
        path: of(&["transfer", "mint", "burn", "clawback", "fee"], "amount"),
        of: Some("decimal(38, 0)".to_owned()),
        required: true,
        ..ColumnConfig::default()
    };
    ("amount_decimal".to_owned(), column)
}
