//! Columns of single values: which type a field has, which others it can become, and what fills them.

use std::sync::Arc;

use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use calve_engine::{Error, Result};

use super::{
    config::Enums,
    fill::{Fill, Kind, Leaf},
    labels::{Case, Labels},
    numbers::{
        Booleans, Cast, Moments, Plain, decimal128, decimal256, double, duration, integer,
        timestamp,
    },
    text::{Fixed, How, Octets, Texts},
};

/// A column's type and what fills it.
type Made = (DataType, Box<dyn Fill>);

/// The type of columns of few different words.
pub(super) fn words() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn utc(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some("UTC".into()))
}

/// What a kind is called in messages.
fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::I32 | Kind::U32 | Kind::I64 | Kind::U64 => "an integer",
        Kind::Bool => "a boolean",
        Kind::F32 | Kind::F64 => "a float",
        Kind::Text => "a string",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "an enum",
        Kind::Timestamp { .. } => "a timestamp",
        Kind::Duration { .. } => "a duration",
        Kind::Raw(_) => "a message",
        Kind::Present => "an empty message",
    }
}

/// The type of a field, where nobody says another.
fn natural_type(kind: &Kind, nested: bool, enums: Enums) -> DataType {
    match kind {
        Kind::I32 => DataType::Int32,
        Kind::U32 => DataType::UInt32,
        Kind::I64 | Kind::Duration { .. } => DataType::Int64,
        Kind::U64 => DataType::UInt64,
        Kind::Bool | Kind::Present => DataType::Boolean,
        Kind::F32 => DataType::Float32,
        Kind::F64 => DataType::Float64,
        Kind::Text | Kind::Raw(_) => DataType::Utf8,
        Kind::Bytes => DataType::Binary,
        Kind::Enum(_) if enums == Enums::Number => DataType::Int32,
        Kind::Enum(_) if nested => DataType::Utf8,
        Kind::Enum(_) => words(),
        Kind::Timestamp { .. } => utc(TimeUnit::Microsecond),
    }
}

/// The column of a field as it is. Inside of lists and structs enums are plain text.
pub(super) fn natural(scope: usize, leaf: Leaf, nested: bool, enums: Enums) -> Result<Made> {
    let of = natural_type(&leaf.kind, nested, enums);
    converted(scope, vec![leaf], Some(of), false, None, enums)
}

/// The column of a message that is kept as its bytes.
pub(super) fn natural_bytes(scope: usize, leaf: Leaf) -> Result<Made> {
    converted(
        scope,
        vec![leaf],
        Some(DataType::Binary),
        false,
        None,
        Enums::Name,
    )
}

pub(super) fn no_fit(what: &str, of: &DataType) -> Error {
    let of = super::super::types::name(of).unwrap_or_else(|| of.to_string());
    Error::config(format!("{what} does not become {of}"))
        .hint("leave `type` out for the field's own type, and convert in SQL")
}

/// The type that some fields have in common.
fn common(leaves: &[Leaf], hex: bool, enums: Enums) -> Result<DataType> {
    let own = |leaf: &Leaf| match (&leaf.kind, hex) {
        (Kind::Text, true) => DataType::Binary,
        (Kind::Bytes, true) => DataType::Utf8,
        (kind, _) => natural_type(kind, false, enums),
    };
    let of = own(&leaves[0]);
    let known = leaves.iter().filter_map(|leaf| match &leaf.kind {
        Kind::Enum(of) => Some(of.full_name()),
        _ => None,
    });
    let known: Vec<&str> = known.collect();
    if of == words() && known.windows(2).any(|two| two[0] != two[1]) {
        return Ok(DataType::Utf8);
    }
    if leaves.iter().any(|leaf| own(leaf) != of) {
        return Err(Error::config("the fields are of different types")
            .hint("say which the column has: `type: varchar`"));
    }
    Ok(of)
}

/// The column of some fields, of which the first counts that is there.
pub(super) fn converted(
    scope: usize,
    leaves: Vec<Leaf>,
    of: Option<DataType>,
    hex: bool,
    otherwise: Option<Case>,
    enums: Enums,
) -> Result<Made> {
    let of = match of {
        Some(of) => of,
        None => common(&leaves, hex, enums)?,
    };
    if otherwise.is_some() && of != DataType::Utf8 {
        return Err(no_fit("the word of `otherwise`", &of));
    }
    for leaf in &leaves {
        if !fits(&leaf.kind, &of, hex) {
            let error = no_fit(name(&leaf.kind), &of).context(&leaf.path);
            return Err(match (&leaf.kind, &of) {
                (Kind::Text, DataType::Binary | DataType::FixedSizeBinary(_))
                | (Kind::Bytes, DataType::Utf8) => {
                    error.hint("say how they are written: `as: hex`")
                }
                _ => error,
            });
        }
    }
    let fill = fill(scope, leaves, &of, hex, otherwise)?;
    Ok((of, fill))
}

/// Whether values of a kind become those of a type.
fn fits(kind: &Kind, of: &DataType, hex: bool) -> bool {
    let whole = matches!(
        kind,
        Kind::I32 | Kind::U32 | Kind::I64 | Kind::U64 | Kind::Enum(_)
    );
    match of {
        DataType::Int64 if matches!(kind, Kind::Duration { .. }) => true,
        of if of.is_integer() => whole || matches!(kind, Kind::Text | Kind::Bool),
        DataType::Float32 => matches!(kind, Kind::F32),
        DataType::Float64 => matches!(kind, Kind::F32 | Kind::F64) || whole,
        DataType::Boolean => matches!(kind, Kind::Bool | Kind::Present),
        DataType::Decimal128(..) | DataType::Decimal256(..) => whole || matches!(kind, Kind::Text),
        DataType::Utf8 => {
            whole
                || matches!(kind, Kind::Text | Kind::Bool | Kind::Raw(_))
                || hex && matches!(kind, Kind::Bytes)
        }
        DataType::Binary | DataType::FixedSizeBinary(1..) => {
            matches!(kind, Kind::Bytes | Kind::Raw(_)) || hex && matches!(kind, Kind::Text)
        }
        DataType::Timestamp(_, zone) => {
            let known = zone.as_ref().is_none_or(|zone| &**zone == "UTC");
            known && (matches!(kind, Kind::Timestamp { .. }) || whole)
        }
        of => *of == words() && matches!(kind, Kind::Enum(_)),
    }
}

fn fill(
    scope: usize,
    leaves: Vec<Leaf>,
    of: &DataType,
    hex: bool,
    otherwise: Option<Case>,
) -> Result<Box<dyn Fill>> {
    if let [leaf] = leaves.as_slice()
        && let Some(plain) = plain(scope, leaf, of)
    {
        return Ok(plain);
    }
    let own = of.clone();
    Ok(match of {
        DataType::Int64 if matches!(leaves[0].kind, Kind::Duration { .. }) => {
            if leaves
                .iter()
                .any(|leaf| !matches!(leaf.kind, Kind::Duration { .. }))
            {
                return Err(no_fit("a duration beside something else", of));
            }
            Box::new(Cast::<Int64Type>::new(scope, leaves, own, duration()))
        }
        DataType::Int8 => Box::new(Cast::<Int8Type>::new(
            scope,
            leaves,
            own,
            integer("tinyint"),
        )),
        DataType::Int16 => Box::new(Cast::<Int16Type>::new(
            scope,
            leaves,
            own,
            integer("smallint"),
        )),
        DataType::Int32 => Box::new(Cast::<Int32Type>::new(scope, leaves, own, integer("int"))),
        DataType::Int64 => Box::new(Cast::<Int64Type>::new(
            scope,
            leaves,
            own,
            integer("bigint"),
        )),
        DataType::UInt8 => Box::new(Cast::<UInt8Type>::new(scope, leaves, own, integer("uint8"))),
        DataType::UInt16 => Box::new(Cast::<UInt16Type>::new(
            scope,
            leaves,
            own,
            integer("uint16"),
        )),
        DataType::UInt32 => Box::new(Cast::<UInt32Type>::new(
            scope,
            leaves,
            own,
            integer("uint32"),
        )),
        DataType::UInt64 => Box::new(Cast::<UInt64Type>::new(
            scope,
            leaves,
            own,
            integer("uint64"),
        )),
        DataType::Float32 => Box::new(Cast::<Float32Type>::new(
            scope,
            leaves,
            own,
            Box::new(|value| double()(value).map(|number| number as f32)),
        )),
        DataType::Float64 => Box::new(Cast::<Float64Type>::new(scope, leaves, own, double())),
        DataType::Decimal128(precision, scale) => Box::new(Cast::<Decimal128Type>::new(
            scope,
            leaves,
            own,
            decimal128(*precision, *scale),
        )),
        DataType::Decimal256(precision, scale) => Box::new(Cast::<Decimal256Type>::new(
            scope,
            leaves,
            own,
            decimal256(*precision, *scale),
        )),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => Box::new(Cast::<TimestampSecondType>::new(
                scope,
                leaves,
                own,
                timestamp(*unit),
            )),
            TimeUnit::Millisecond => Box::new(Cast::<TimestampMillisecondType>::new(
                scope,
                leaves,
                own,
                timestamp(*unit),
            )),
            TimeUnit::Microsecond => Box::new(Cast::<TimestampMicrosecondType>::new(
                scope,
                leaves,
                own,
                timestamp(*unit),
            )),
            TimeUnit::Nanosecond => Box::new(Cast::<TimestampNanosecondType>::new(
                scope,
                leaves,
                own,
                timestamp(*unit),
            )),
        },
        DataType::Boolean => Box::new(Booleans::new(scope, leaves)),
        DataType::Utf8 => {
            let how = |leaf: Leaf| {
                let how = if hex && matches!(leaf.kind, Kind::Bytes) {
                    How::ToHex
                } else {
                    How::Same
                };
                (leaf, how)
            };
            let leaves = leaves.into_iter().map(how).collect();
            Box::new(Texts::new(scope, leaves, otherwise))
        }
        DataType::Binary => Box::new(Octets::new(scope, from_text(leaves))),
        DataType::FixedSizeBinary(width) => Box::new(Fixed::new(
            scope,
            from_text(leaves),
            width.unsigned_abs() as usize,
        )),
        other => match &leaves[0].kind {
            Kind::Enum(names) => {
                let names = names.clone();
                let others = leaves.iter().any(|leaf| match &leaf.kind {
                    Kind::Enum(other) => other.full_name() != names.full_name(),
                    _ => true,
                });
                if others {
                    return Err(no_fit("an enum beside something else", other));
                }
                Box::new(Labels::names(scope, leaves, &names))
            }
            kind => return Err(no_fit(name(kind), other)),
        },
    })
}

/// Bytes are as they are; text is digits.
fn from_text(leaves: Vec<Leaf>) -> Vec<(Leaf, How)> {
    let how = |leaf: Leaf| {
        let how = if matches!(leaf.kind, Kind::Text) {
            How::FromHex
        } else {
            How::Same
        };
        (leaf, how)
    };
    leaves.into_iter().map(how).collect()
}

/// Values that are as they are in their cell, of one field.
fn plain(scope: usize, leaf: &Leaf, of: &DataType) -> Option<Box<dyn Fill>> {
    let leaf = leaf.clone();
    Some(match (&leaf.kind, of) {
        (Kind::I32 | Kind::Enum(_), DataType::Int32) => {
            Box::new(Plain::<Int32Type, _>::new(scope, leaf, |cell| {
                cell as u32 as i32
            }))
        }
        (Kind::U32, DataType::UInt32) => {
            Box::new(Plain::<UInt32Type, _>::new(scope, leaf, |cell| cell as u32))
        }
        (Kind::I64, DataType::Int64) => {
            Box::new(Plain::<Int64Type, _>::new(scope, leaf, |cell| cell as i64))
        }
        (Kind::U64, DataType::UInt64) => {
            Box::new(Plain::<UInt64Type, _>::new(scope, leaf, |cell| cell))
        }
        (Kind::F32, DataType::Float32) => {
            Box::new(Plain::<Float32Type, _>::new(scope, leaf, |cell| {
                f32::from_bits(cell as u32)
            }))
        }
        (Kind::F64, DataType::Float64) => {
            Box::new(Plain::<Float64Type, _>::new(scope, leaf, f64::from_bits))
        }
        (Kind::Timestamp { nanos }, DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            let (nanos, zone) = (*nanos, zone.clone());
            Box::new(Moments::new(
                scope,
                leaf,
                nanos,
                zone.map(|zone| Arc::from(&*zone)),
            ))
        }
        _ => return None,
    })
}
