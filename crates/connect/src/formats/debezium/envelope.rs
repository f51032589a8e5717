//! One change: `{"before": …, "after": …, "source": {…}, "op": "u", "ts_ms": …}`, read in one pass.
//!
//! The image that counts (`after`; of a delete `before`) goes straight into the columns. `before`
//! comes first and mostly counts for nothing: it is walked over, and read only when the operation
//! turns out to be a delete.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StructArray},
    datatypes::{DataType, Field, Fields},
    error::ArrowError,
};
use calve_engine::Result;

use super::{deleted, mongo};
use crate::formats::json::{
    column::Slot,
    keys::{COMPLETE, END, Keys, SKIP, START},
    object::Object,
    text::{Failure, block, byte, is_null, skip_space, skip_value, string},
    wire::{How, Wire},
};

/// Keys of an envelope, in the order of their numbers; metadata comes behind them.
pub(super) const KEYS: [&str; 6] = [
    "before",
    "after",
    "op",
    "schema",
    "payload",
    "updateDescription",
];
const BEFORE: usize = 0;
const AFTER: usize = 1;
const OPERATION: usize = 2;
const SCHEMA: usize = 3;
const PAYLOAD: usize = 4;
const DESCRIPTION: usize = 5;

/// Reads what stands around the images of rows.
pub(super) struct Envelope {
    keys: Keys,
    /// Metadata, by the first name of its path.
    groups: Vec<(String, Slot)>,
    /// The operations of the rows.
    pub(super) ops: Vec<u8>,
    /// A document that was written as a string, or the row of a delete that was put together.
    document: String,
    /// Where the key of the message begins that the change is in, if it has one.
    pub(super) key: Option<usize>,
}

/// What was read.
pub(super) enum Change {
    /// A row.
    Row,
    /// Nothing that changes a row.
    None,
    /// The change stands inside, under `payload`; and where its schema begins.
    Inside {
        payload: usize,
        schema: Option<usize>,
    },
}

/// Where the parts of an envelope begin that were walked over.
#[derive(Default)]
struct Seen {
    /// The envelope itself.
    change: usize,
    op: Option<u8>,
    before: Option<usize>,
    has_after: bool,
    schema: Option<usize>,
    payload: Option<usize>,
    description: bool,
}

impl Envelope {
    /// For metadata of these paths; the fields have the paths as their names.
    ///
    /// # Errors
    /// `Config` for a type that cannot be read from JSON.
    pub(super) fn new(metadata: &[Field]) -> Result<Self> {
        let paths = metadata.iter().map(|field| {
            let path: Vec<&str> = field.name().split('.').collect();
            (path, field)
        });
        let (groups, wires) = tree(paths.collect());
        let mut fields: Vec<Field> = KEYS
            .iter()
            .map(|key| Field::new(*key, DataType::Null, true))
            .collect();
        fields.extend(groups.iter().map(|field| field.as_ref().clone()));
        let slot = |(field, wire): (&Arc<Field>, &Wire)| {
            Ok((field.name().clone(), Slot::new(field, wire)?))
        };
        Ok(Self {
            keys: Keys::new(&fields.into()),
            groups: groups
                .iter()
                .zip(&wires)
                .map(slot)
                .collect::<Result<Vec<_>>>()?,
            ops: Vec::new(),
            document: String::new(),
            key: None,
        })
    }

    /// Reads the change at `at`, which is an object; answers where it ends. Rows, operations and
    /// metadata have one value more then, or none where there is no row. After a failure the caller
    /// truncates.
    pub(super) fn read(
        &mut self,
        rows: &mut Object,
        text: &str,
        mut at: usize,
    ) -> Result<(Change, usize), Failure> {
        let bytes = text.as_bytes();
        let row = self.ops.len();
        let mut seen = Seen {
            change: at,
            ..Seen::default()
        };
        let mut previous = START;
        let mut next = self.keys.edges[START].next as usize;
        loop {
            let edge = &self.keys.edges[next];
            let target;
            if block(bytes, at).is_some_and(|ahead| edge.matches(ahead)) {
                (previous, target) = (next, edge.target);
                at += edge.len as usize;
                next = edge.next as usize;
            } else {
                (previous, target, at) = self.keys.turn(text, previous, at)?;
                next = self.keys.edges[previous].next as usize;
            }
            match target {
                SKIP => at = skip_value(bytes, at)?,
                END | COMPLETE => break,
                target => {
                    let n = target as usize;
                    if let Some((name, slot)) = n
                        .checked_sub(KEYS.len())
                        .and_then(|n| self.groups.get_mut(n))
                    {
                        if slot.any().len() != row {
                            slot.any().truncate(row);
                        }
                        at = slot.append(text, at).map_err(|f| f.within(name))?;
                    } else {
                        at = self.part(n, rows, text, at, &mut seen)?;
                    }
                }
            }
        }
        Ok((self.settle(rows, text, &seen)?, at))
    }

    /// Reads the value at `at` of one of the [`KEYS`]; the last of a key counts.
    #[inline]
    fn part(
        &mut self,
        n: usize,
        rows: &mut Object,
        text: &str,
        at: usize,
        seen: &mut Seen,
    ) -> Result<usize, Failure> {
        let bytes = text.as_bytes();
        let at = skip_space(bytes, at);
        match n {
            OPERATION => {
                let (op, end) = operation(text, at)?;
                seen.op = Some(op);
                Ok(end)
            }
            AFTER => {
                if seen.has_after {
                    rows.truncate(self.ops.len());
                    seen.has_after = false;
                }
                if is_null(bytes, at) {
                    return Ok(at + 4);
                }
                seen.has_after = true;
                self.image(rows, text, at).map_err(|f| f.within("after"))
            }
            _ => {
                let place = (!is_null(bytes, at)).then_some(at);
                match n {
                    BEFORE => seen.before = place,
                    SCHEMA => seen.schema = place,
                    PAYLOAD => seen.payload = Some(at),
                    DESCRIPTION => seen.description = place.is_some(),
                    _ => {}
                }
                if place.is_none() {
                    return Ok(at + 4);
                }
                skip_value(bytes, at)
            }
        }
    }

    /// Appends the image of a row at `at`: an object, or a document as a string.
    #[inline]
    fn image(&mut self, rows: &mut Object, text: &str, at: usize) -> Result<usize, Failure> {
        if byte(text.as_bytes(), at) != b'"' {
            return rows.read(text, at);
        }
        let (document, end) = string(text, at)?;
        self.document.clear();
        mongo::simplify(&document, &mut self.document)?;
        let read = rows.read(&self.document, 0)?;
        debug_assert_eq!(read, self.document.len(), "what was written is one object");
        Ok(end)
    }

    /// Appends the row of a delete with what the key of its message says and `before` does not; false:
    /// `before` says it all.
    #[inline]
    fn image_by_key(
        &mut self,
        rows: &mut Object,
        text: &str,
        seen: &Seen,
    ) -> Result<bool, Failure> {
        let Some(key) = self.key else {
            return Ok(false);
        };
        self.document.clear();
        match seen.before {
            None => self.document.push_str("{}"),
            Some(at) if byte(text.as_bytes(), at) == b'"' => {
                let (document, _) = string(text, at)?;
                let simple = mongo::simplify(&document, &mut self.document);
                simple.map_err(|f| f.within("before"))?;
            }
            Some(at) => {
                let end = skip_value(text.as_bytes(), at)?;
                self.document.push_str(&text[at..end]);
            }
        }
        if !deleted::complete(&mut self.document, rows, text, key, seen.change) {
            return Ok(false);
        }
        let read = rows.read(&self.document, 0);
        read.map_err(|f| f.within("key"))?;
        Ok(true)
    }

    /// Decides what the change is, now that all of it was seen.
    #[inline]
    fn settle(&mut self, rows: &mut Object, text: &str, seen: &Seen) -> Result<Change, Failure> {
        let row = self.ops.len();
        let Some(op) = seen.op else {
            if let Some(payload) = seen.payload {
                let schema = seen.schema;
                return Ok(Change::Inside { payload, schema });
            }
            return Err(Failure::new(
                "not a change: it has no `op` (rows without envelope need `unwrapped: true`)",
            ));
        };
        match op {
            b'c' | b'u' | b'r' => {
                if !seen.has_after {
                    return Err(Failure::new(if seen.description {
                        "the update holds no full document: set capture.mode to \
                         change_streams_update_full at the connector"
                    } else {
                        "after is missing"
                    }));
                }
            }
            b'd' => {
                rows.truncate(row);
                match seen.before {
                    _ if self.image_by_key(rows, text, seen)? => {}
                    Some(at) => {
                        let read = self.image(rows, text, at);
                        read.map_err(|f| f.within("before"))?;
                    }
                    None => rows.append_null(),
                }
            }
            b't' => {
                rows.truncate(row);
                rows.append_null();
            }
            b'm' => {
                self.truncate(row);
                rows.truncate(row);
                return Ok(Change::None);
            }
            _ => return Err(Failure::new("op is none of c, u, d, r, t, m")),
        }
        for (_, slot) in &mut self.groups {
            let column = slot.any();
            if column.len() == row {
                column.append_null();
            }
        }
        self.ops.push(op);
        Ok(Change::Row)
    }

    /// Keeps the first `len` changes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.ops.truncate(len);
        for (_, slot) in &mut self.groups {
            slot.any().truncate(len);
        }
    }

    /// The columns of metadata, in the order of `paths`; starts over.
    pub(super) fn finish(&mut self, paths: &[Field]) -> Result<Vec<ArrayRef>, ArrowError> {
        self.ops.clear();
        let mut groups = Vec::with_capacity(self.groups.len());
        for (name, slot) in &mut self.groups {
            groups.push((name.as_str(), slot.any().finish()?));
        }
        let missing = || ArrowError::SchemaError("a path of metadata has no column".into());
        let column = |path: &Field| {
            let mut names = path.name().split('.');
            let first = names.next().unwrap_or_default();
            let group = groups.iter().find(|(name, _)| *name == first);
            let mut column = &group.ok_or_else(missing)?.1;
            for name in names {
                let parent = column
                    .as_any()
                    .downcast_ref::<StructArray>()
                    .and_then(|parent| parent.column_by_name(name));
                column = parent.ok_or_else(missing)?;
            }
            Ok(Arc::clone(column))
        };
        paths.iter().map(column).collect()
    }
}

/// The names of a path, and the field that it becomes.
type Path<'a> = (Vec<&'a str>, &'a Field);

/// Paths as nested fields, and how their values are written: texts as any scalar.
fn tree(paths: Vec<Path>) -> (Fields, Vec<Wire>) {
    let mut groups: Vec<(&str, Vec<Path>)> = Vec::new();
    for (path, field) in paths {
        let (first, rest) = (path[0], path[1..].to_vec());
        match groups.iter_mut().find(|(name, _)| *name == first) {
            Some((_, inside)) => inside.push((rest, field)),
            None => groups.push((first, vec![(rest, field)])),
        }
    }
    let (mut fields, mut wires) = (Vec::new(), Vec::new());
    for (name, inside) in groups {
        let (of, wire) = match inside.as_slice() {
            [(rest, field)] if rest.is_empty() => {
                let how = match field.data_type() {
                    DataType::Utf8 => How::Text,
                    _ => How::Plain,
                };
                (field.data_type().clone(), Wire::leaf(how))
            }
            _ => {
                let (fields, wires) = tree(inside);
                let wire = Wire {
                    how: How::Plain,
                    inside: wires,
                };
                (DataType::Struct(fields), wire)
            }
        };
        fields.push(Field::new(name, of, true));
        wires.push(wire);
    }
    (fields.into(), wires)
}

/// The operation at `at`: one letter; 0 for anything else.
#[inline]
fn operation(text: &str, at: usize) -> Result<(u8, usize), Failure> {
    let bytes = text.as_bytes();
    let letter = byte(bytes, at + 1);
    if byte(bytes, at) == b'"' && byte(bytes, at + 2) == b'"' && letter.is_ascii_alphabetic() {
        return Ok((letter, at + 3));
    }
    if byte(bytes, at) != b'"' {
        return Ok((0, skip_value(bytes, at)?));
    }
    let (op, end) = string(text, at)?;
    let one = <[u8; 1]>::try_from(op.as_bytes()).map_or(0, |[op]| op);
    Ok((one, end))
}
