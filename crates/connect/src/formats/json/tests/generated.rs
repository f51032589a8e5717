//! Random schemas and random events for them, in random order, with and without white space.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{check_batch, reference::is_json};
use crate::formats::json::JsonDecoder;

const NAMES: [&str; 6] = [
    "a",
    "b",
    "ts",
    "user_id",
    "a name of more than sixteen bytes",
    "ключ",
];

fn types() -> impl Strategy<Value = DataType> {
    let leaf = select(vec![
        DataType::Int64,
        DataType::Int64,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Float64,
        DataType::Float64,
        DataType::Boolean,
        DataType::Int16,
        DataType::UInt8,
        DataType::UInt64,
        DataType::Float32,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::Date32,
        DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        DataType::Decimal128(12, 3),
    ]);
    leaf.prop_recursive(3, 12, 4, |inner| {
        let item = (inner.clone(), any::<bool>());
        prop_oneof![
            fields(inner).prop_map(|fields| DataType::Struct(fields.into())),
            item.clone()
                .prop_map(|(of, nullable)| DataType::List(Arc::new(Field::new(
                    "item", of, nullable
                )))),
            item.prop_map(|(of, _)| {
                let key = Field::new("key", DataType::Utf8, false);
                let fields = vec![key, Field::new("value", of, true)];
                let entries = Field::new("entries", DataType::Struct(fields.into()), false);
                DataType::Map(Arc::new(entries), false)
            }),
        ]
    })
}

fn fields(of: impl Strategy<Value = DataType>) -> impl Strategy<Value = Vec<Field>> {
    vec((of, any::<bool>()), 1..=NAMES.len()).prop_map(|types| {
        let named = types.into_iter().zip(NAMES);
        named
            .map(|((of, nullable), name)| Field::new(name, of, nullable))
            .collect()
    })
}

/// A small generator of its own, so that one number gives one line.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn space(&mut self, out: &mut String, odd: bool) {
        if odd && self.roll(3) == 0 {
            out.push_str(self.one_of(&[" ", "  ", "\t", "\r"]));
        }
    }

    fn string(&mut self, out: &mut String) {
        out.push('"');
        for _ in 0..self.roll(4) * self.roll(8) {
            out.push_str(self.one_of(&[
                "a",
                "xyz",
                "é",
                "😀",
                "\\n",
                "\\\"",
                "\\u00e9",
                "\\ud83d\\ude00",
                "0",
                "{",
                "}",
                ",",
                ":",
                "a longer stretch of text",
            ]));
        }
        out.push('"');
    }

    fn value(&mut self, of: &DataType, out: &mut String, odd: bool) {
        if odd && self.roll(60) == 0 {
            out.push_str(self.one_of(&[
                "true",
                "-0",
                "1e2",
                "\"7\"",
                "[]",
                "{}",
                "{\"a\":[1]}",
                "1.5",
            ]));
            return;
        }
        match of {
            DataType::Boolean => out.push_str(self.one_of(&["true", "false"])),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => self.string(out),
            DataType::Float64 | DataType::Float32 | DataType::Decimal128(..) => {
                let text = format!("{}.{}", self.roll(100_000), self.roll(10_000));
                out.push_str(&text);
            }
            DataType::Binary => {
                out.push_str(self.one_of(&["\"\"", "\"00ff\"", "\"a\"", "\"deadbeef\""]));
            }
            DataType::Date32 => {
                out.push_str(self.one_of(&["\"2024-01-31\"", "19000", "\"1969-12-31\""]));
            }
            DataType::Timestamp(..) => {
                out.push_str(self.one_of(&[
                    "\"2024-01-31T01:02:03.456Z\"",
                    "1706662923456",
                    "\"2024-01-31\"",
                ]));
            }
            DataType::Struct(fields) => self.object(fields, out, odd),
            DataType::List(item) => {
                out.push('[');
                for n in 0..self.roll(4) {
                    out.push_str(if n > 0 { "," } else { "" });
                    self.space(out, odd);
                    self.nullable(item, out, odd);
                    self.space(out, odd);
                }
                out.push(']');
            }
            DataType::Map(entries, _) => {
                let DataType::Struct(entry) = entries.data_type() else {
                    unreachable!("a map")
                };
                out.push('{');
                for n in 0..self.roll(4) {
                    out.push_str(if n > 0 { "," } else { "" });
                    self.string(out);
                    self.space(out, odd);
                    out.push(':');
                    self.nullable(&entry[1], out, odd);
                }
                out.push('}');
            }
            _ => out.push_str(&self.roll(200).to_string()),
        }
    }

    fn nullable(&mut self, field: &Field, out: &mut String, odd: bool) {
        let one_in = if field.is_nullable() { 6 } else { 200 };
        if self.roll(one_in) == 0 {
            out.push_str("null");
        } else {
            self.value(field.data_type(), out, odd);
        }
    }

    fn object<'a>(
        &mut self,
        fields: impl IntoIterator<Item = &'a Arc<Field>>,
        out: &mut String,
        odd: bool,
    ) {
        let mut fields: Vec<&Arc<Field>> = fields.into_iter().collect();
        if self.roll(2) == 0 {
            for n in (1..fields.len()).rev() {
                fields.swap(n, self.roll(n + 1));
            }
        }
        if odd && self.roll(6) == 0 {
            fields.push(fields[0]); // a key that comes twice
        }
        out.push('{');
        let mut comma = "";
        for field in fields {
            if field.is_nullable() && self.roll(5) == 0 {
                continue;
            }
            out.push_str(comma);
            comma = ",";
            if odd && self.roll(8) == 0 {
                out.push_str("\"unknown\":");
                out.push_str(self.one_of(&[
                    "1",
                    "\"\\n\"",
                    "[1,{\"a\":[]}]",
                    "{\"a\":{\"a\":null}}",
                    "-1.5e-7",
                ]));
                out.push(',');
            }
            self.space(out, odd);
            out.push_str(&format!("\"{}\"", field.name()));
            self.space(out, odd);
            out.push(':');
            self.space(out, odd);
            self.nullable(field, out, odd);
            self.space(out, odd);
        }
        out.push('}');
    }
}

fn lines(schema: &SchemaRef, seeds: &[u64]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for &seed in seeds {
        let mut dice = Dice(seed | 1);
        dice.roll(1);
        let odd = dice.roll(2) == 0;
        let mut line = String::new();
        dice.object(schema.fields(), &mut line, odd);
        let mut line = line.into_bytes();
        match dice.roll(40) {
            0 => line.truncate(dice.roll(line.len() + 1)),
            1 => {
                let at = dice.roll(line.len());
                line[at] = b"\x00\x80\"{}[],:\\x1"[dice.roll(11)];
            }
            _ => {}
        }
        if is_json(&line) {
            lines.push(line);
        }
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_event_of_any_schema_as_arrow_json(
        fields in fields(types()),
        seeds in vec(any::<u64>(), 1..60),
    ) {
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let mut decoder = JsonDecoder::new(schema.clone()).expect("supported types");
        let lines = lines(&schema, &seeds);
        let half = lines.len() / 2;
        check_batch(&schema, &lines[..half], &mut decoder);
        check_batch(&schema, &lines[half..], &mut decoder);
    }
}
