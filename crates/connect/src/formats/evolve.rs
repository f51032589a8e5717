//! Schemas that evolve while a source is read: fields that no event had before, and types that became
//! wider, as an Iceberg table can take them. Only for columns that nobody declared: a declaration says
//! what is read.
//!
//! A decoder notices that an event has more than its columns; what exactly, [`evolved`] finds out from
//! the batch, by the same rules by which the schema was inferred at first. A field of which nothing but
//! nulls and empty lists or objects has come waits until its type is known.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use calve_engine::{Error, RawBatch, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{FormatConfig, columns::Columns, infer};

/// In which ways a schema may evolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "Spelled")]
pub struct Evolve {
    /// New fields become columns.
    pub add: bool,
    /// Types become wider: int to bigint, float to double, decimals of more digits.
    pub widen: bool,
}

impl Default for Evolve {
    fn default() -> Self {
        Self {
            add: true,
            widen: true,
        }
    }
}

impl Evolve {
    /// In no way.
    pub const STRICT: Self = Self {
        add: false,
        widen: false,
    };
}

/// How it is written: one word, or a list of them.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the JSON schema, too")]
enum Spelled {
    One(Word),
    Several(Vec<Word>),
}

/// What may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// New columns.
    Add,
    /// Wider types.
    Widen,
    /// Nothing.
    Strict,
}

impl Serialize for Evolve {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words = [(self.add, "add"), (self.widen, "widen")];
        let words: Vec<&str> = words
            .iter()
            .filter_map(|(on, word)| on.then_some(*word))
            .collect();
        if words.is_empty() {
            return serializer.serialize_str("strict");
        }
        words.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evolve {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = match Spelled::deserialize(deserializer) {
            Ok(Spelled::One(word)) => vec![word],
            Ok(Spelled::Several(words)) => words,
            Err(_) => {
                return Err(de::Error::custom(
                    "expected add, widen, strict, or a list such as [add, widen]",
                ));
            }
        };
        if words.contains(&Word::Strict) && words.len() > 1 || words.is_empty() {
            return Err(de::Error::custom(
                "strict stands alone: write strict, add, widen, or [add, widen]",
            ));
        }
        Ok(Self {
            add: words.contains(&Word::Add),
            widen: words.contains(&Word::Widen),
        })
    }
}

/// What a decoder does with fields that its schema does not know.
#[derive(Clone, Debug, Default)]
pub(super) enum Unknown {
    /// Reads over them.
    #[default]
    Skip,
    /// Notes that one came with a value.
    Note(Arc<AtomicBool>),
    /// Rejects the event.
    Refuse,
}

/// Looks whether a schema has to evolve, for a decoder.
pub(super) struct Watch {
    format: FormatConfig,
    schema: SchemaRef,
    evolve: Evolve,
    /// What does not fit is kept elsewhere.
    rescues: bool,
    noted: Arc<AtomicBool>,
}

impl Watch {
    pub(super) fn new(format: FormatConfig, schema: &SchemaRef, evolve: Evolve) -> Self {
        Self {
            format,
            schema: Arc::clone(schema),
            evolve,
            rescues: false,
            noted: Arc::default(),
        }
    }

    /// For a decoder that keeps what does not fit.
    pub(super) fn rescuing(mut self) -> Self {
        self.rescues = true;
        self
    }

    /// What the columns are told to do.
    pub(super) fn unknown(&self) -> Unknown {
        if self.evolve == Evolve::STRICT && !self.rescues {
            Unknown::Refuse
        } else if self.evolve.add || self.rescues {
            Unknown::Note(Arc::clone(&self.noted))
        } else {
            Unknown::Skip
        }
    }

    /// Whether new fields become columns.
    pub(super) fn adds(&self) -> bool {
        self.evolve.add
    }

    /// Whether a column of type `has` has to change for values of type `seen`, and may.
    pub(super) fn grows(&self, has: &DataType, seen: &DataType) -> bool {
        merged_type(has, seen, self.evolve).is_some()
    }

    /// The batch has more than the schema.
    pub(super) fn note(&self) {
        self.noted.store(true, Ordering::Relaxed);
    }

    /// The batch had more than the schema.
    pub(super) fn noted(&self) -> bool {
        self.noted.load(Ordering::Relaxed)
    }

    /// See [`calve_engine::Decoder::evolved`].
    pub(super) fn evolved(&self, raw: &RawBatch) -> Result<Option<SchemaRef>> {
        let kept = self.rescues && !self.evolve.add;
        if !self.noted.swap(false, Ordering::Relaxed) || kept {
            return Ok(None);
        }
        evolved(&self.format, &self.schema, raw, self.evolve)
    }
}

/// The schema with what the batch has more; none: nothing that is allowed.
///
/// # Errors
/// `Schema` when the batch has a column of a type that calve does not take.
fn evolved(
    format: &FormatConfig,
    schema: &SchemaRef,
    raw: &RawBatch,
    evolve: Evolve,
) -> Result<Option<SchemaRef>> {
    let Some(seen) = infer::known_fields(format, raw)? else {
        return Ok(None);
    };
    if evolve == Evolve::STRICT {
        let more = seen.iter().filter(|f| schema.index_of(f.name()).is_err());
        let names: Vec<&str> = more.map(|field| field.name().as_str()).collect();
        return match names.as_slice() {
            [] => Ok(None),
            names => Err(Error::schema(format!(
                "{} has columns that the schema lacks: columns={}",
                raw.partition,
                names.join(",")
            ))
            .hint("take them with `schema: { evolve: add }`, or declare under the format which columns are read")),
        };
    }
    let Some(fields) = merged(schema.fields(), &seen, evolve) else {
        return Ok(None);
    };
    let mut fields: Vec<FieldRef> = fields.iter().cloned().collect();
    if let FormatConfig::Debezium(config) = format {
        // Behind the columns come operation and metadata.
        fields.sort_by_key(|field| config.is_extra(field.name()));
    }
    // It is stored, and must survive that.
    Columns::of(&Schema::new(fields))?.schema().map(Some)
}

/// Whether a schema may follow a former one: columns may come, go, and become wider.
pub fn follows(former: &Schema, now: &Schema, evolve: Evolve) -> bool {
    let mut more = false;
    for field in now.fields() {
        match former.field_with_name(field.name()) {
            Err(_) => more = true,
            Ok(had) if had.data_type() == field.data_type() => {
                // What was required may be missing from now on; the table's columns are optional.
            }
            Ok(had) => {
                let wider = merged_type(had.data_type(), field.data_type(), evolve);
                if wider.as_ref() != Some(field.data_type()) {
                    return false;
                }
            }
        }
    }
    let gone = former
        .fields()
        .iter()
        .any(|had| now.field_with_name(had.name()).is_err());
    (!more || evolve.add) && (!gone || evolve != Evolve::STRICT)
}

/// `has` with what `seen` has more; none: nothing.
fn merged(has: &Fields, seen: &Fields, evolve: Evolve) -> Option<Fields> {
    let mut fields: Vec<FieldRef> = has.iter().cloned().collect();
    let mut changed = false;
    for field in seen {
        match fields.iter_mut().find(|had| had.name() == field.name()) {
            Some(had) => {
                if let Some(wider) = merged_type(had.data_type(), field.data_type(), evolve) {
                    *had = Arc::new(had.as_ref().clone().with_data_type(wider));
                    changed = true;
                }
            }
            None if evolve.add => {
                fields.push(Arc::new(storable(field).with_nullable(true)));
                changed = true;
            }
            None => {}
        }
    }
    changed.then(|| fields.into())
}

/// A field that tables can have: 64 bits without a sign fit no integer of Iceberg, and a stream must not
/// stop for one large number.
fn storable(field: &Field) -> Field {
    fn of(data_type: &DataType) -> DataType {
        let item = |field: &FieldRef| Arc::new(storable(field));
        match data_type {
            DataType::UInt64 => DataType::Decimal128(20, 0),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect()),
            DataType::List(of) => DataType::List(item(of)),
            DataType::LargeList(of) => DataType::LargeList(item(of)),
            other => other.clone(),
        }
    }
    field.clone().with_data_type(of(field.data_type()))
}

/// The type that holds values of both, where it is another one than `has` and may follow it.
pub(super) fn merged_type(has: &DataType, seen: &DataType, evolve: Evolve) -> Option<DataType> {
    use DataType as D;
    let item = |has: &FieldRef, seen: &FieldRef| {
        let wider = merged_type(has.data_type(), seen.data_type(), evolve)?;
        Some(Arc::new(has.as_ref().clone().with_data_type(wider)))
    };
    match (has, seen) {
        (D::Struct(has), D::Struct(seen)) => merged(has, seen, evolve).map(D::Struct),
        (D::List(has), D::List(seen)) => item(has, seen).map(D::List),
        (D::LargeList(has), D::LargeList(seen)) => item(has, seen).map(D::LargeList),
        (D::Map(has, sorted), D::Map(seen, _)) => {
            let (D::Struct(entries), D::Struct(others)) = (has.data_type(), seen.data_type())
            else {
                return None;
            };
            let (key, value) = (entries.first()?, entries.get(1)?);
            let value = item(value, others.get(1)?)?;
            let entries = D::Struct(vec![Arc::clone(key), value].into());
            let entries = Arc::new(has.as_ref().clone().with_data_type(entries));
            Some(D::Map(entries, *sorted))
        }
        _ if !evolve.widen => None,
        (D::Int8 | D::UInt8, D::Int16)
        | (D::Int8 | D::Int16 | D::UInt8 | D::UInt16, D::Int32)
        | (D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 | D::UInt32, D::Int64)
        | (D::Float16, D::Float32)
        | (D::Float16 | D::Float32, D::Float64) => Some(seen.clone()),
        (
            D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s),
            D::Decimal32(q, t) | D::Decimal64(q, t) | D::Decimal128(q, t),
        ) if s == t && p < q => Some(seen.clone()),
        _ => None,
    }
}

/// A field for a column that was never seen with a value: none has a type yet.
pub(super) fn known(field: &Field) -> bool {
    !matches!(field.data_type(), DataType::Null)
}

#[cfg(test)]
#[path = "evolve_tests.rs"]
mod tests;
