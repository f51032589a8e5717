//! Any types and any messages of them, against prost-reflect: both take a message or both refuse it,
//! and they find the same in it. What differs on purpose is left out: prost-reflect refuses a field of
//! another wire type than its own, which is unknown to us as it is to everybody else.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{
        DataType, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
        UInt32Type, UInt64Type,
    },
};
use prost_reflect::{
    FieldDescriptor, Kind as Type, MapKey, MessageDescriptor, ReflectMessage as _,
    Value as Dynamic,
    prost::encoding::{WireType, encode_key, encode_varint},
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::formats::protobuf::wire::Span;

type Random = ChaCha8Rng;

const SCALARS: [&str; 16] = [
    "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32",
    "sfixed64", "float", "double", "bool", "string", "bytes", "E",
];
const KNOWN: [&str; 4] = [
    "google.protobuf.Timestamp",
    "google.protobuf.Int64Value",
    "google.protobuf.StringValue",
    "google.protobuf.FloatValue",
];
const NUMBERS: [u32; 9] = [1, 2, 5, 15, 16, 100, 255, 256, 70_000];
const KEYS: [&str; 4] = ["int32", "string", "bool", "uint64"];

/// The source of a `.proto` file: `M` holds `M1`, which may hold `M2`.
fn types(random: &mut Random) -> String {
    let mut source =
        "syntax = \"proto3\";\npackage t;\nenum E { ZERO = 0; ONE = 1; NEG = -3; }\n".to_owned();
    for file in ["timestamp", "wrappers"] {
        source.push_str(&format!("import \"google/protobuf/{file}.proto\";\n"));
    }
    for (level, name) in ["M", "M1", "M2"].iter().enumerate() {
        let of = |random: &mut Random| {
            let inner = ["M1", "M2"].get(level..).unwrap_or_default();
            match random.random_range(0..10) {
                0..3 if !inner.is_empty() => (*inner.choose(random).expect("one")).to_owned(),
                0..4 => (*KNOWN.choose(random).expect("one")).to_owned(),
                _ => (*SCALARS.choose(random).expect("one")).to_owned(),
            }
        };
        let (mut plain, mut case) = (String::new(), String::new());
        let count = random.random_range(1..=NUMBERS.len());
        for number in &NUMBERS[..count] {
            let of = of(random);
            match random.random_range(0..8) {
                0..2 => plain.push_str(&format!("  {of} f{number} = {number};\n")),
                2 => plain.push_str(&format!("  optional {of} f{number} = {number};\n")),
                3..5 => plain.push_str(&format!("  repeated {of} f{number} = {number};\n")),
                5 => {
                    let key = KEYS.choose(random).expect("one");
                    plain.push_str(&format!("  map<{key}, {of}> f{number} = {number};\n"));
                }
                _ => case.push_str(&format!("    {of} f{number} = {number};\n")),
            }
        }
        if !case.is_empty() {
            plain.push_str(&format!("  oneof o {{\n{case}  }}\n"));
        }
        source.push_str(&format!("message {name} {{\n{plain}}}\n"));
    }
    source
}

fn varint(random: &mut Random) -> u64 {
    match random.random_range(0..4) {
        0 => random.random_range(0..3),
        1 => u64::MAX - random.random_range(0..3),
        2 => random.random::<u64>() >> random.random_range(0..64),
        _ => random.random_range(0..1000),
    }
}

fn text(random: &mut Random) -> Vec<u8> {
    let len = *[0, 1, 5, 16, 17, 64, 65, 200].choose(random).expect("one");
    let mut bytes: Vec<u8> = (0..len).map(|_| random.random_range(b'a'..=b'z')).collect();
    if random.random_ratio(1, 8) {
        bytes.extend_from_slice("é🧊".as_bytes());
    }
    if random.random_ratio(1, 100) {
        bytes.push(0xc3);
    }
    bytes
}

fn length_delimited(bytes: &[u8], out: &mut Vec<u8>) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A value without its key.
fn write_value(of: &Type, random: &mut Random, out: &mut Vec<u8>) {
    match of {
        Type::Float | Type::Fixed32 | Type::Sfixed32 => {
            out.extend_from_slice(&random.random::<u32>().to_le_bytes());
        }
        Type::Double | Type::Fixed64 | Type::Sfixed64 => {
            out.extend_from_slice(&random.random::<u64>().to_le_bytes());
        }
        Type::String | Type::Bytes => length_delimited(&text(random), out),
        Type::Message(message) => {
            let bytes = if message.full_name() == "google.protobuf.Timestamp" {
                timestamp(random)
            } else {
                write(message, random)
            };
            length_delimited(&bytes, out);
        }
        _ => encode_varint(varint(random), out),
    }
}

/// Mostly within its range.
fn timestamp(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(1, WireType::Varint, &mut bytes);
    encode_varint(random.random_range(0..253_402_300_900), &mut bytes);
    if random.random_ratio(1, 2) {
        encode_key(2, WireType::Varint, &mut bytes);
        encode_varint(random.random_range(0..1_050_000_000), &mut bytes);
    }
    bytes
}

/// A message: fields in any order and number, known and unknown.
fn write(of: &MessageDescriptor, random: &mut Random) -> Vec<u8> {
    let fields: Vec<FieldDescriptor> = of.fields().collect();
    let mut out = Vec::new();
    for _ in 0..random.random_range(0..8) {
        let Some(field) = fields.choose(random).filter(|_| random.random_ratio(9, 10)) else {
            match random.random_range(0..3) {
                0 => out.extend_from_slice(&[0xf8, 0x7f, 0x05]),
                1 => out.extend_from_slice(&[0xfa, 0x7f, 0x02, 0xff, 0xff]),
                _ => out.extend_from_slice(&[0xfb, 0x7f, 0x08, 0x01, 0xfc, 0x7f]),
            }
            continue;
        };
        let of = field.kind();
        if field.is_list() && of.wire_type() != WireType::LengthDelimited && random.random() {
            let mut packed = Vec::new();
            for _ in 0..random.random_range(0..4) {
                write_value(&of, random, &mut packed);
            }
            encode_key(field.number(), WireType::LengthDelimited, &mut out);
            length_delimited(&packed, &mut out);
        } else {
            encode_key(field.number(), of.wire_type(), &mut out);
            write_value(&of, random, &mut out);
        }
    }
    out
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            _ if at == bytes.len() => {}
            2 => drop(bytes.remove(at)),
            _ => bytes[at] ^= 1 << random.random_range(0..8),
        }
    }
}

/// Whether a message that is not malformed holds a known field of another wire type than its own.
fn differs(of: &MessageDescriptor, bytes: &[u8]) -> bool {
    let span = Span {
        bytes,
        end: bytes.len(),
    };
    let mut at = 0;
    while at < bytes.len() {
        let Ok((key, next)) = span.key(at) else {
            return false;
        };
        let wire = key & 7;
        if let Some(field) = of.get_field(key >> 3) {
            let own = field.kind().wire_type() as u32;
            let packed = wire == 2 && field.is_list() && own != 2;
            if wire != own && !packed {
                return true;
            }
            if let (Type::Message(inner), Ok((from, to))) = (field.kind(), span.length(next))
                && differs(&inner, &bytes[from..to])
            {
                return true;
            }
        }
        match span.skip(key, next, 100) {
            Ok(end) => at = end,
            Err(_) => return false,
        }
    }
    false
}

/// The row that a message should become; none where it should be a reject.
fn expected(message: &DynamicMessage) -> Option<Value> {
    let mut row = serde_json::Map::new();
    for oneof in message.descriptor().oneofs().filter(|o| !o.is_synthetic()) {
        let set = oneof.fields().find(|field| message.has_field(field));
        row.insert(
            oneof.name().to_owned(),
            json!(set.map(|f| f.name().to_owned())),
        );
    }
    for field in message.descriptor().fields() {
        let there = !field.supports_presence() || message.has_field(&field);
        let value = if there {
            expected_value(&field.kind(), &message.get_field(&field))?
        } else {
            Value::Null
        };
        row.insert(field.name().to_owned(), value);
    }
    Some(Value::Object(row))
}

fn expected_value(of: &Type, value: &Dynamic) -> Option<Value> {
    Some(match value {
        Dynamic::Bool(v) => json!(v),
        Dynamic::I32(v) => json!(v),
        Dynamic::I64(v) => json!(v),
        Dynamic::U32(v) => json!(v),
        Dynamic::U64(v) => json!(v),
        Dynamic::F32(v) => json!(v.to_bits()),
        Dynamic::F64(v) => json!(v.to_bits()),
        Dynamic::String(v) => json!(v),
        Dynamic::Bytes(v) => json!(v.to_vec()),
        Dynamic::EnumNumber(v) => {
            let Type::Enum(of) = of else { return None };
            json!(
                of.get_value(*v)
                    .map_or(v.to_string(), |named| named.name().to_owned())
            )
        }
        Dynamic::Message(v) => match v.descriptor().full_name() {
            "google.protobuf.Timestamp" => {
                let seconds = v.get_field_by_name("seconds")?.as_i64()?;
                let nanos = v.get_field_by_name("nanos")?.as_i32()?;
                let fine = (0..1_000_000_000).contains(&nanos)
                    && (-62_135_596_800..=253_402_300_799).contains(&seconds);
                json!(fine.then(|| seconds * 1_000_000 + i64::from(nanos / 1000))?)
            }
            name if name.starts_with("google.protobuf.") => {
                let field = v.descriptor().get_field(1)?;
                expected_value(&field.kind(), &v.get_field(&field))?
            }
            _ => expected(v)?,
        },
        Dynamic::List(v) => {
            let items = v.iter().map(|item| expected_value(of, item));
            Value::Array(items.collect::<Option<_>>()?)
        }
        Dynamic::Map(v) => {
            let Type::Message(entry) = of else {
                return None;
            };
            let of = entry.map_entry_value_field().kind();
            let entries = v.iter().map(|(key, value)| {
                let key = match key {
                    MapKey::Bool(key) => key.to_string(),
                    MapKey::I32(key) => key.to_string(),
                    MapKey::U64(key) => key.to_string(),
                    MapKey::String(key) => key.clone(),
                    _ => return None,
                };
                Some((key, expected_value(&of, value)?))
            });
            Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}

/// A value of a column, in the form of [`expected`].
fn found(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => json!(column.as_boolean().value(row)),
        DataType::Int32 => json!(column.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(column.as_primitive::<Int64Type>().value(row)),
        DataType::UInt32 => json!(column.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => json!(column.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => json!(column.as_primitive::<Float32Type>().value(row).to_bits()),
        DataType::Float64 => json!(column.as_primitive::<Float64Type>().value(row).to_bits()),
        DataType::Timestamp(..) => {
            json!(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => json!(column.as_string::<i32>().value(row)),
        DataType::Binary => json!(column.as_binary::<i32>().value(row)),
        DataType::Dictionary(..) => found(&cast(column, &DataType::Utf8).expect("text"), row),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(column.as_struct().columns());
            let members = columns.map(|(field, column)| (field.name().clone(), found(column, row)));
            Value::Object(members.collect())
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            Value::Array((0..items.len()).map(|at| found(&items, at)).collect())
        }
        DataType::Map(..) => {
            let entries = column.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let name = |key| match found(keys, key) {
                Value::String(key) => key,
                other => other.to_string(),
            };
            let members: serde_json::Map<_, _> = (0..entries.len())
                .map(|at| (name(at), found(values, at)))
                .collect();
            assert_eq!(members.len(), entries.len(), "a key is there twice");
            Value::Object(members)
        }
        other => panic!("unexpected type {other}"),
    }
}

/// Compares some messages of made-up types; answers how many were rows and how many rejects.
fn compare(seed: u64, mutated: bool) -> (usize, usize) {
    let mut random = Random::seed_from_u64(seed);
    let source = types(&mut random);
    let config = config(&pool(&source), "{}");
    let of = config.descriptor().expect("descriptor");
    let mut all = Vec::new();
    for _ in 0..40 {
        let mut bytes = write(&of, &mut random);
        if mutated {
            mutate(&mut bytes, &mut random);
        }
        if !differs(&of, &bytes) {
            all.push(bytes);
        }
    }
    let theirs: Vec<Option<Value>> = all
        .iter()
        .map(|bytes| expected(&DynamicMessage::decode(of.clone(), &bytes[..]).ok()?))
        .collect();
    let decoded = decode(&config, &all);
    let mut rows = 0..decoded.rows.num_rows();
    let mut rejects = decoded.rejects.iter().peekable();
    // An entry of a map that a later one replaces is converted nevertheless, so it must convert.
    let replaced = |reject: &&Reject| {
        source.contains("map<") && reject.error.ends_with("the timestamp is out of range")
    };
    for (bytes, theirs) in all.iter().zip(&theirs) {
        let place = format!("seed={seed} mutated={mutated} bytes={bytes:?}\n{source}");
        let Some(theirs) = theirs else {
            let reject = rejects
                .next()
                .unwrap_or_else(|| panic!("they refuse it: {place}"));
            assert_eq!(reject.raw, bytes, "{place}");
            continue;
        };
        if rejects
            .next_if(|reject| reject.raw == *bytes && replaced(reject))
            .is_some()
        {
            continue;
        }
        let row = rows
            .next()
            .unwrap_or_else(|| panic!("they take it: {place}"));
        let columns = decoded.rows.schema();
        let columns = columns.fields().iter().zip(decoded.rows.columns());
        let ours = columns.map(|(field, column)| (field.name().clone(), found(column, row)));
        assert_eq!(Value::Object(ours.collect()), *theirs, "{place}");
    }
    assert_eq!((rows.len(), rejects.len()), (0, 0), "seed={seed}");
    (decoded.rows.num_rows(), decoded.rejects.len())
}

#[test]
fn any_message_of_any_type_is_what_prost_reflect_finds() {
    let (mut rows, mut rejects) = (0, 0);
    for seed in 0..300 {
        for mutated in [false, true] {
            let (more_rows, more_rejects) = compare(seed, mutated);
            rows += more_rows;
            rejects += more_rejects;
        }
    }
    // Both must have been met often, or the test says nothing.
    assert!(
        rows > 10_000 && rejects > 2_000,
        "rows={rows} rejects={rejects}"
    );
}
