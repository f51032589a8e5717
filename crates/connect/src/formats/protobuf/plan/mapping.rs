//! Columns that say which fields they are filled from.

use std::collections::BTreeMap;

use arrow::datatypes::{
    DataType, Field, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use calve_engine::{Error, Result};
use prost_reflect::{FieldDescriptor, Kind as Type, MessageDescriptor, OneofDescriptor};

use super::{Made, Maker};
use crate::formats::{
    protobuf::{
        config::{ColumnConfig, Encoding, Mapping, Otherwise},
        draft::{Drafts, WellKnown, value_of},
        fill::{Fill, Leaf},
        labels::Case,
        leaves,
        numbers::Positions,
        paths,
    },
    types,
};

/// Where a path leads.
enum End {
    Field(Vec<FieldDescriptor>),
    Oneof(Vec<FieldDescriptor>, OneofDescriptor),
}

impl End {
    fn fields(&self) -> &[FieldDescriptor] {
        match self {
            Self::Field(fields) | Self::Oneof(fields, _) => fields,
        }
    }

    /// Whether another end holds the same kind of thing.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Oneof(_, one), Self::Oneof(_, other)) => one.full_name() == other.full_name(),
            (Self::Field(one), Self::Field(other)) => match (one.last(), other.last()) {
                (Some(one), Some(other)) => {
                    let alone = |f: &FieldDescriptor| !f.is_list() && !f.is_map();
                    let op = |f: &FieldDescriptor| value_of(f).map(|(op, _)| op);
                    alone(one)
                        && alone(other)
                        && op(one).is_some()
                        && op(one) == op(other)
                        && one.kind() == other.kind()
                        && one.supports_presence() == other.supports_presence()
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl Maker {
    /// Gives one cell to fields that exclude each other and fill the same columns together.
    pub(super) fn share(&mut self, message: &MessageDescriptor, mapping: &Mapping) -> Result<()> {
        let mut lists: Vec<Vec<&str>> = Vec::new();
        for (_, column) in &mapping.0 {
            lists.push(column.path.iter().map(String::as_str).collect());
            lists.push(column.case.iter().map(String::as_str).collect());
            let otherwise = column.otherwise.iter().flat_map(|other| &other.case);
            lists.push(otherwise.map(String::as_str).collect());
        }
        for list in &mut lists {
            list.sort_unstable();
            list.dedup();
        }
        lists.sort_unstable();
        lists.dedup();
        let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
        for path in lists.iter().flatten() {
            *uses.entry(path).or_default() += 1;
        }
        for list in lists.iter().filter(|list| list.len() > 1) {
            if list.iter().any(|path| uses[path] > 1) {
                continue;
            }
            let ends: Vec<End> = list.iter().filter_map(|path| end(message, path)).collect();
            let alike = ends.iter().all(|end| end.is_like(&ends[0]));
            let apart = ends.iter().enumerate().all(|(n, one)| {
                let mut others = ends[n + 1..].iter();
                others.all(|other| paths::exclusive(one.fields(), other.fields()))
            });
            if ends.len() == list.len() && alike && apart {
                self.share_ends(&ends)?;
            }
        }
        Ok(())
    }

    fn share_ends(&mut self, ends: &[End]) -> Result<()> {
        let (mut leaf, mut cell) = (None, None);
        for end in ends {
            match end {
                End::Field(fields) => {
                    let (draft, field) = self.walk(fields)?;
                    let value = self.drafts.value(draft, &field, leaf.as_ref())?;
                    leaf.get_or_insert(value);
                }
                End::Oneof(before, oneof) => {
                    let draft = self.walk_into(before)?;
                    cell = Some(self.drafts.oneof(draft, oneof, cell)?);
                }
            }
        }
        Ok(())
    }

    /// The draft that holds the last field of a path.
    fn walk(&mut self, fields: &[FieldDescriptor]) -> Result<(usize, FieldDescriptor)> {
        let Some((last, before)) = fields.split_last() else {
            return Err(Error::internal("an empty path"));
        };
        Ok((self.walk_into(before)?, last.clone()))
    }

    fn walk_into(&mut self, fields: &[FieldDescriptor]) -> Result<usize> {
        fields
            .iter()
            .try_fold(0, |draft, field| self.drafts.enter(draft, field))
    }

    /// A column of the mapping.
    pub(super) fn mapped(
        &mut self,
        message: &MessageDescriptor,
        name: &str,
        column: &ColumnConfig,
    ) -> Result<(Field, Box<dyn Fill>)> {
        let declared = match &column.of {
            Some(text) => Some(types::parse(name, text)?),
            None => None,
        };
        let required = column.required || declared.as_ref().is_some_and(|f| !f.is_nullable());
        let of = declared.map(|field| field.data_type().clone());
        let (of, fill) = if column.offset || column.ordinal {
            position(column.ordinal, of)?
        } else if column.case.is_empty() {
            self.chosen(message, column, of)?
        } else {
            let dictionary = match of {
                None => true,
                Some(DataType::Utf8) => false,
                Some(of) if of == leaves::words() => true,
                Some(of) => return Err(leaves::no_fit("the case of a oneof", &of)),
            };
            let otherwise = Otherwise {
                case: column.case.clone(),
                names: column.names.clone(),
                absent: column.absent.clone(),
            };
            let case = self.words(message, &otherwise, true)?;
            self.case(0, case, dictionary)
        };
        Ok((Field::new(name, of, !required), fill))
    }

    fn chosen(
        &mut self,
        message: &MessageDescriptor,
        column: &ColumnConfig,
        of: Option<DataType>,
    ) -> Result<Made> {
        let mut ends = Vec::new();
        for path in &column.path {
            ends.push(paths::fields(message, path)?);
        }
        if let ([fields], None, None, None) =
            (ends.as_slice(), &of, &column.encoding, &column.otherwise)
        {
            let (draft, field) = self.walk(fields)?;
            return self.whole(draft, &field, false, &mut Vec::new());
        }
        let as_bytes = matches!(of, Some(DataType::Binary | DataType::FixedSizeBinary(_)));
        let mut found: Vec<Leaf> = Vec::new();
        for (fields, path) in ends.iter().zip(&column.path) {
            let (draft, field) = self.walk(fields)?;
            let many = field.is_list() || field.is_map();
            let leaf = match field.kind() {
                _ if many => None,
                Type::Message(_) if as_bytes => Some(self.drafts.raw(draft, &field)?),
                Type::Message(inner)
                    if of == Some(DataType::Utf8)
                        && WellKnown::of(&inner).is_none()
                        && inner.fields().len() > 0 =>
                {
                    Some(self.drafts.raw(draft, &field)?)
                }
                _ => self.drafts.leaf(draft, &field)?,
            };
            let Some(leaf) = leaf else {
                return Err(Error::config(format!(
                    "only one value can be chosen or converted, and this is more: path={path}"
                ))
                .hint("name it alone, without `type` and `as`; a message becomes JSON text with `type: varchar`"));
            };
            found.push(leaf);
        }
        // Fields that share a cell are one.
        let shared = found.windows(2).all(|two| {
            let same = (two[0].cell, two[0].flag) == (two[1].cell, two[1].flag);
            same && two[0].cell != 0
        });
        if shared && found.len() > 1 {
            let paths = column.path.join(" or ");
            found.truncate(1);
            found[0].path = paths;
        }
        let hex = column.encoding == Some(Encoding::Hex);
        let otherwise = match &column.otherwise {
            Some(otherwise) => Some(self.words(message, otherwise, false)?),
            None => None,
        };
        leaves::converted(0, found, of, hex, otherwise, self.enums)
    }

    /// The words of some oneofs. With `all`, fields without a word go by their names.
    fn words(&mut self, message: &MessageDescriptor, of: &Otherwise, all: bool) -> Result<Case> {
        let mut case = Case::default();
        let mut known: Vec<String> = Vec::new();
        for path in &of.case {
            let (before, oneof) = paths::oneof(message, path)?;
            let draft = self.walk_into(&before)?;
            let cell = self.drafts.oneof(draft, &oneof, None)?;
            known.extend(oneof.fields().map(|field| field.name().to_owned()));
            let words = Drafts::words(&oneof, |name| {
                let word = of.names.get(name).cloned();
                word.or_else(|| all.then(|| name.to_owned()))
            });
            case.add(cell, words);
        }
        if let Some(stray) = of.names.keys().find(|name| !known.contains(name)) {
            return Err(
                Error::config(format!("no field of the oneof: names.{stray}"))
                    .hint(format!("its fields: {}", known.join(", "))),
            );
        }
        if let Some(word) = &of.absent {
            case.absent(word.clone());
        }
        Ok(case)
    }
}

fn end(message: &MessageDescriptor, path: &str) -> Option<End> {
    if let Ok(fields) = paths::fields(message, path) {
        return Some(End::Field(fields));
    }
    let (before, oneof) = paths::oneof(message, path).ok()?;
    Some(End::Oneof(before, oneof))
}

/// A column of offsets or ordinals.
fn position(ordinal: bool, of: Option<DataType>) -> Result<Made> {
    let natural = if ordinal {
        DataType::UInt32
    } else {
        DataType::Int64
    };
    let of = of.unwrap_or(natural);
    let fill: Box<dyn Fill> = match &of {
        DataType::Int8 => Box::new(Positions::<Int8Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::Int16 => Box::new(Positions::<Int16Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::Int32 => Box::new(Positions::<Int32Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::Int64 => Box::new(Positions::<Int64Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::UInt8 => Box::new(Positions::<UInt8Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::UInt16 => Box::new(Positions::<UInt16Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::UInt32 => Box::new(Positions::<UInt32Type>::new(ordinal, |n| n.try_into().ok())),
        DataType::UInt64 => Box::new(Positions::<UInt64Type>::new(ordinal, Some)),
        _ => return Err(leaves::no_fit("a position", &of)),
    };
    Ok((of, fill))
}
