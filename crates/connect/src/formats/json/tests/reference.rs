//! What is right: arrow-json's answer, but for the one value that calve refuses where arrow-json
//! takes it and that any schema may meet, a number with a fraction in a column of integers. (What
//! else differs on purpose stands in `hostile`, line by line.)

use std::collections::HashMap;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Fields, SchemaRef},
};
use serde_json::value::RawValue;

/// The row of one line; none where it is a reject.
pub(super) fn reference(schema: &SchemaRef, line: &[u8]) -> Option<RecordBatch> {
    arrow_json(schema, line).filter(|_| !cuts_a_fraction_off(schema.fields(), &printable(line)))
}

/// What arrow-json makes of one line: its row, or none where it fails.
pub(super) fn arrow_json(schema: &SchemaRef, line: &[u8]) -> Option<RecordBatch> {
    let mut decoder = arrow_json::ReaderBuilder::new(schema.clone())
        .with_batch_size(16)
        .build_decoder()
        .expect("arrow-json knows the schema");
    let mut text = line.to_vec();
    text.push(b'\n');
    let read = decoder.decode(&text).ok()?;
    assert_eq!(read, text.len(), "fewer rows than the batch holds");
    decoder.flush().ok()?
}

/// What a second reader of JSON says; control characters are fine. Arrow-json reads more than JSON.
pub(super) fn is_json(line: &[u8]) -> bool {
    let line = printable(line);
    std::str::from_utf8(&line).is_err()
        || serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_ok()
}

fn printable(line: &[u8]) -> Vec<u8> {
    let control = |b: &u8| {
        if *b < 0x20 && !b"\t\r".contains(b) {
            b'x'
        } else {
            *b
        }
    };
    line.iter().map(control).collect()
}

/// Whether an object holds a number with a fraction where its field is an integer, at any depth.
fn cuts_a_fraction_off(fields: &Fields, object: &[u8]) -> bool {
    let Ok(values) = serde_json::from_slice::<HashMap<String, &RawValue>>(object) else {
        return false;
    };
    fields.iter().any(|field| {
        let value = values.get(field.name());
        value.is_some_and(|value| cuts(field.data_type(), value))
    })
}

fn cuts(of: &DataType, value: &RawValue) -> bool {
    let text = value.get();
    match of {
        DataType::Struct(fields) => cuts_a_fraction_off(fields, text.as_bytes()),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            serde_json::from_str::<Vec<&RawValue>>(text)
                .is_ok_and(|items| items.iter().any(|value| cuts(item.data_type(), value)))
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(entry) = entries.data_type() else {
                unreachable!("a map")
            };
            serde_json::from_str::<Pairs>(text)
                .is_ok_and(|pairs| pairs.0.iter().any(|v| cuts(entry[1].data_type(), v)))
        }
        of => {
            (of.is_integer() || of.is_temporal())
                && text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
                && has_fraction(text)
        }
    }
}

/// The values of an object, those of a key that comes twice too.
struct Pairs<'a>(Vec<&'a RawValue>);

impl<'de> serde::Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Pairs<'de>, A::Error> {
                let mut values = Vec::new();
                while let Some((_, value)) = map.next_entry::<String, &RawValue>()? {
                    values.push(value);
                }
                Ok(Pairs(values))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Whether a digit other than zero stands behind the point, once the exponent has moved it.
fn has_fraction(number: &str) -> bool {
    let number = number.trim_start_matches('-').to_ascii_lowercase();
    let (mantissa, exponent) = number.split_once('e').unwrap_or((&number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let point = whole.len() as i64 + exponent.parse::<i64>().expect("a short exponent");
    let mut digits = whole.chars().chain(fraction.chars()).enumerate();
    digits.any(|(n, digit)| n as i64 >= point && digit != '0')
}
