//! The events of a real ledger, and generated ones of all five kinds.

use arrow::{
    array::{AsArray, FixedSizeBinaryArray},
    datatypes::{DataType, TimestampMicrosecondType, UInt32Type},
};

use super::*;

/// The messages of the fixture and the same events as JSON; none, with a note, where it is not there.
fn ledger() -> Option<(Vec<Vec<u8>>, Vec<Value>)> {
    let folder = std::env::var("CALVE_FIXTURES").unwrap_or("../../../shared/fixtures".into());
    let folder = std::path::Path::new(&folder).join("token-transfers");
    let Ok(framed) = std::fs::read(folder.join("ledger-53312000.pb.lp")) else {
        eprintln!("not run: no fixture in {}", folder.display());
        return None;
    };
    let mut rest = framed.as_slice();
    let mut messages = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let (message, behind) = behind.split_at(u32::from_be_bytes(*len) as usize);
        messages.push(message.to_vec());
        rest = behind;
    }
    let text = std::fs::read_to_string(folder.join("ledger-53312000.jsonl")).expect("the JSON");
    let events = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    Some((messages, events.collect()))
}

/// The row of an event, by the contract alone.
fn expected(event: &Value, nth: usize) -> Value {
    let kinds = ["transfer", "mint", "burn", "clawback", "fee"];
    let kind = kinds
        .iter()
        .find(|kind| event.get(**kind).is_some())
        .expect("a kind");
    let (meta, body) = (&event["meta"], &event[*kind]);
    let issued = body
        .pointer("/asset/issued_asset")
        .or(body.pointer("/asset/issuedAsset"));
    let native = body.pointer("/asset/native").is_some();
    let text = |value: &Value, names: [&str; 2]| {
        let found = names.iter().find_map(|name| value.get(name));
        found.cloned().unwrap_or(Value::Null)
    };
    let code = issued.map(|issued| text(issued, ["asset_code", "assetCode"]));
    let muxed = meta.get("to_muxed_info").cloned().unwrap_or(Value::Null);
    let id = muxed.get("id").map(|id| match id {
        Value::String(digits) => digits.clone(),
        other => other.to_string(),
    });
    let note = muxed.get("text").and_then(Value::as_str).map(str::to_owned);
    assert!(muxed.get("hash").is_none(), "the ledger has none");
    json!({
        "timestamp": meta["closed_at"], "ledger_sequence": meta["ledger_sequence"],
        "transaction_hash": meta["tx_hash"], "transaction_index": meta["transaction_index"],
        "operation_index": text(meta, ["operation_index", "operationIndex"]),
        "event_index": nth, "event_type": kind,
        "source_account": text(body, ["from", "from"]), "dest_account": text(body, ["to", "to"]),
        "asset_type": if native { "native" } else if issued.is_some() { "issued" } else { "custom" },
        "asset_code": code.unwrap_or(if native { json!("XLM") } else { Value::Null }),
        "asset_issuer": issued.map_or(Value::Null, |issued| text(issued, ["issuer", "issuer"])),
        "contract_address": meta["contract_address"], "amount": body["amount"],
        "memo": note.or(id.clone()),
        "muxed_id": id.map(|id| id.parse::<u64>().expect("digits")), "muxed_hash": null
    })
}

#[test]
fn the_events_of_a_real_ledger_are_those_of_its_json() {
    let Some((all, events)) = ledger() else {
        return;
    };
    assert_eq!((all.len(), events.len()), (296, 296));
    let config = token_transfers().expect("the preset");
    let mut decoder =
        ProtobufDecoder::new(&config, &config.schema().expect("schema")).expect("decoder");
    let mut messages = messages(&all);
    messages.offsets = vec![53_312_000; all.len()];
    messages.ordinals = (0..all.len() as u32).collect();
    let decoded = decoder.decode_messages(&messages).expect("decoded");
    assert_eq!(decoded.rejects, []);
    let rows = to_json(&decoded.rows);
    let mut kinds = [0; 3];
    for (nth, (row, event)) in rows.iter().zip(&events).enumerate() {
        assert_eq!(*row, expected(event, nth), "event {nth}");
        kinds[0] += usize::from(row["event_type"] == "fee");
        kinds[1] += usize::from(row["amount"].as_str().expect("text").starts_with('-'));
        kinds[2] += usize::from(row["memo"] != Value::Null);
    }
    assert_eq!(rows.len(), 296);
    assert_eq!(kinds, [164, 1, 4], "fees, refunds, muxed destinations");
}

#[test]
fn the_columns_of_token_transfers_have_their_types() {
    let schema = token_transfers()
        .expect("the preset")
        .schema()
        .expect("schema");
    let types: Vec<(&str, String, bool)> = schema
        .fields()
        .iter()
        .map(|f| {
            (
                f.name().as_str(),
                crate::formats::types::name(f.data_type()).expect("a name"),
                f.is_nullable(),
            )
        })
        .collect();
    let expect = |name, of: &str, nullable| (name, of.to_owned(), nullable);
    assert_eq!(
        types,
        [
            expect("timestamp", "timestamptz(us)", false),
            expect("ledger_sequence", "uint32", false),
            expect("transaction_hash", "fixed_size_binary(32)", false),
            expect("transaction_index", "uint32", false),
            expect("operation_index", "uint32", true),
            expect("event_index", "uint32", false),
            expect("event_type", "dictionary(varchar)", false),
            expect("source_account", "varchar", true),
            expect("dest_account", "varchar", true),
            expect("asset_type", "dictionary(varchar)", false),
            expect("asset_code", "varchar", true),
            expect("asset_issuer", "varchar", true),
            expect("contract_address", "varchar", true),
            expect("amount", "varchar", false),
            expect("memo", "varchar", true),
            expect("muxed_id", "decimal(20, 0)", true),
            expect("muxed_hash", "binary", true),
        ]
    );
}

#[test]
fn all_kinds_assets_and_memos_are_told_apart() {
    let mut config = token_transfers().expect("the preset");
    config
        .columns
        .as_mut()
        .expect("columns")
        .0
        .push(decimal_amount());
    let hash = "07d47d9efe62e9abc80ac5f9d7c01a9c8fbe02ef6dc961c9bd1d813da2c08954";
    let event = |kind: &str, muxed: Value, body: Value| {
        let mut meta = json!({
            "ledgerSequence": 5, "closedAt": "2024-09-02T10:50:19Z", "txHash": hash,
            "transactionIndex": 1, "contractAddress": "C1"
        });
        if !muxed.is_null() {
            meta["toMuxedInfo"] = muxed;
        }
        json!({ "meta": meta, kind: body })
    };
    let all = [
        event(
            "transfer",
            json!({ "hash": "/wA=" }),
            json!({ "from": "a", "to": "b", "amount": "1", "asset": { "native": true } }),
        ),
        event(
            "mint",
            json!({ "id": "18446744073709551615" }),
            json!({ "to": "b", "amount": "170141183460469231731687303715884105727" }),
        ),
        event(
            "burn",
            json!({ "text": "hi" }),
            json!({ "from": "a", "amount": "2", "asset": { "issuedAsset": { "assetCode": "USD", "issuer": "G" } } }),
        ),
        event(
            "clawback",
            Value::Null,
            json!({ "from": "a", "amount": "3" }),
        ),
        event(
            "fee",
            Value::Null,
            json!({ "from": "a", "amount": "-30211", "asset": { "native": true } }),
        ),
        json!({ "meta": event("fee", Value::Null, Value::Null)["meta"] }),
        json!({ "fee": { "amount": "1" } }),
    ];
    let all: Vec<Vec<u8>> = all.iter().map(|event| bytes_of(&config, event)).collect();
    let decoded = decode(&config, &all);
    let errors: Vec<&str> = decoded.rejects.iter().map(|r| r.error.as_str()).collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors[0].ends_with("the value does not fit decimal(38, 0)"),
        "{errors:?}"
    );
    assert!(
        errors[1].starts_with("field=event_type: the column is required"),
        "{errors:?}"
    );
    assert!(errors[2].starts_with("field=timestamp"), "{errors:?}");
    let of = |key: &str| {
        let rows = to_json(&decoded.rows);
        rows.iter()
            .map(|row| row[key].clone())
            .collect::<Vec<Value>>()
    };
    assert_eq!(
        json!(of("event_type")),
        json!(["transfer", "burn", "clawback", "fee"])
    );
    assert_eq!(json!(of("source_account")), json!(["a", "a", "a", "a"]));
    assert_eq!(json!(of("dest_account")), json!(["b", null, null, null]));
    assert_eq!(
        json!(of("asset_type")),
        json!(["native", "issued", "custom", "native"])
    );
    assert_eq!(json!(of("asset_code")), json!(["XLM", "USD", null, "XLM"]));
    assert_eq!(json!(of("asset_issuer")), json!([null, "G", null, null]));
    assert_eq!(json!(of("memo")), json!(["ff00", "hi", null, null]));
    assert_eq!(json!(of("amount_decimal")), json!([1, 2, 3, -30211]));
    let column = |name: &str| decoded.rows.column_by_name(name).expect("a column");
    let hashes = column("transaction_hash")
        .as_any()
        .downcast_ref::<FixedSizeBinaryArray>();
    assert_eq!(hashes.expect("fixed").value(0)[..2], [0x07, 0xd4]);
    let times = column("timestamp").as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.value(0), 1_725_274_219_000_000);
    assert_eq!(
        column("ledger_sequence")
            .as_primitive::<UInt32Type>()
            .value(0),
        5
    );
    assert!(matches!(
        column("event_type").data_type(),
        DataType::Dictionary(..)
    ));
}
