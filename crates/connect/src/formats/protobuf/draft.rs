//! Field tables while they grow: columns ask for fields, and each gets its cell.
//!
//! A message has a draft for each place where it stands, since its fields have cells of their own
//! there. When all columns have asked, [`Drafts::finish`] makes tables of the drafts. What nobody
//! asked for is in no table, but for the other cases of a oneof, which undo the one that was set.

mod compile;
mod types;

use std::collections::BTreeMap;

use calve_engine::{Error, Result};
use prost_reflect::{FieldDescriptor, Kind as Type, MessageDescriptor, OneofDescriptor, Value};

use self::types::is_wide;
pub(super) use self::types::{WellKnown, oneof_of, value_of};
use super::{
    fill::{Kind, Leaf},
    read::constant,
    table::{ABSENT, NOWHERE, Op, Scope},
};

/// So many messages, each at one place, make a plan.
const MAX_DRAFTS: usize = 10_000;

/// A message at one place.
#[derive(Debug)]
struct Draft {
    message: MessageDescriptor,
    scope: usize,
    present: u16,
    /// By field number.
    wants: BTreeMap<u32, Want>,
    /// Cells of oneofs, by their names.
    oneofs: BTreeMap<String, u16>,
    initial: Vec<(u16, u64)>,
    /// The path to it, for messages.
    path: String,
}

/// What is wanted of a field.
#[derive(Clone, Copy, Debug)]
enum Want {
    Value { op: Op, cell: u16, flag: u16 },
    Message { draft: usize },
    List { cell: u16, scope: usize, of: ListOf },
}

#[derive(Clone, Copy, Debug)]
enum ListOf {
    Values { op: Op, cell: u16, flag: u16 },
    Messages { draft: usize },
}

/// Elements of a list, or entries of a map.
#[derive(Debug)]
pub(super) struct Elements {
    /// The cell that says where a list begins.
    pub(super) cell: u16,
    pub(super) scope: usize,
    pub(super) of: ElementsOf,
}

#[derive(Debug)]
pub(super) enum ElementsOf {
    Values(Leaf),
    Messages { draft: usize },
}

/// The drafts of a plan; number 0 is the whole message, in scope 0.
#[derive(Debug)]
pub(super) struct Drafts {
    all: Vec<Draft>,
    scopes: Vec<Scope>,
    constants: Vec<u8>,
}

fn too_large() -> Error {
    Error::config("the message has too many fields for one table")
        .hint("name those that you need: `columns: { at: meta.closed_at, … }`")
}

impl Drafts {
    pub(super) fn new(message: MessageDescriptor) -> Self {
        let whole = Draft {
            message,
            scope: 0,
            present: NOWHERE,
            wants: BTreeMap::new(),
            oneofs: BTreeMap::new(),
            initial: Vec::new(),
            path: String::new(),
        };
        Self {
            all: vec![whole],
            scopes: vec![Scope::new()],
            constants: Vec::new(),
        }
    }

    pub(super) fn message(&self, draft: usize) -> &MessageDescriptor {
        &self.all[draft].message
    }

    pub(super) fn scope(&self, draft: usize) -> usize {
        self.all[draft].scope
    }

    /// The cell that says whether a message is there; [`NOWHERE`]: it always is.
    pub(super) fn present(&self, draft: usize) -> u16 {
        self.all[draft].present
    }

    fn path(&self, draft: usize, field: &FieldDescriptor) -> String {
        let above = &self.all[draft].path;
        if above.is_empty() {
            field.name().to_owned()
        } else {
            format!("{above}.{}", field.name())
        }
    }

    fn cell(&mut self, scope: usize, value: u64) -> Result<u16> {
        let template = &mut self.scopes[scope].template;
        let cell = u16::try_from(template.len()).map_err(|_| too_large())?;
        template.push(value);
        Ok(cell)
    }

    fn add(&mut self, message: MessageDescriptor, scope: usize, path: String) -> Result<usize> {
        if self.all.len() >= MAX_DRAFTS {
            return Err(too_large());
        }
        let present = self.cell(scope, 0)?;
        self.all.push(Draft {
            message,
            scope,
            present,
            wants: BTreeMap::new(),
            oneofs: BTreeMap::new(),
            initial: Vec::new(),
            path,
        });
        Ok(self.all.len() - 1)
    }

    fn twice(&self, draft: usize, field: &FieldDescriptor) -> Error {
        Error::config(format!(
            "a message is asked for in parts and as text or bytes: path={}",
            self.path(draft, field)
        ))
        .hint("keep one of the two")
    }

    /// The draft of a field that is a message.
    pub(super) fn enter(&mut self, draft: usize, field: &FieldDescriptor) -> Result<usize> {
        match self.all[draft].wants.get(&field.number()) {
            Some(Want::Message { draft }) => return Ok(*draft),
            Some(_) => return Err(self.twice(draft, field)),
            None => {}
        }
        let Type::Message(message) = field.kind() else {
            return Err(Error::internal("a field that is no message was entered"));
        };
        let path = self.path(draft, field);
        let inner = self.add(message, self.all[draft].scope, path)?;
        let wants = &mut self.all[draft].wants;
        wants.insert(field.number(), Want::Message { draft: inner });
        Ok(inner)
    }

    /// The leaf of a field with one value; none for messages that are more than that.
    pub(super) fn leaf(&mut self, draft: usize, field: &FieldDescriptor) -> Result<Option<Leaf>> {
        if value_of(field).is_some() {
            return self.value(draft, field, None).map(Some);
        }
        let Type::Message(message) = field.kind() else {
            return Ok(None);
        };
        match WellKnown::of(&message) {
            Some(WellKnown::Json) => self.raw(draft, field).map(Some),
            Some(_) => {
                let inner = self.enter(draft, field)?;
                self.whole_leaf(inner)
            }
            None if message.fields().len() == 0 => {
                let inner = self.enter(draft, field)?;
                self.whole_leaf(inner)
            }
            None => Ok(None),
        }
    }

    /// The leaf of a message that is one value.
    pub(super) fn whole_leaf(&mut self, draft: usize) -> Result<Option<Leaf>> {
        let Draft {
            message,
            present,
            path,
            ..
        } = &self.all[draft];
        let (message, present, path) = (message.clone(), *present, path.clone());
        let field = |number| {
            let field = message.get_field(number);
            field.ok_or_else(|| {
                Error::config(format!("not as it is known: {}", message.full_name()))
            })
        };
        let known = WellKnown::of(&message);
        let leaf = match known {
            Some(WellKnown::Wrapper) => Leaf {
                path,
                ..self.value(draft, &field(1)?, None)?
            },
            Some(WellKnown::Timestamp | WellKnown::Duration) => {
                let seconds = self.value(draft, &field(1)?, None)?.cell;
                let nanos = self.value(draft, &field(2)?, None)?.cell;
                let kind = match known {
                    Some(WellKnown::Timestamp) => Kind::Timestamp { nanos },
                    _ => Kind::Duration { nanos },
                };
                Leaf {
                    path,
                    cell: seconds,
                    flag: present,
                    kind,
                }
            }
            None if message.fields().len() == 0 => Leaf {
                path,
                cell: present,
                flag: present,
                kind: Kind::Present,
            },
            Some(WellKnown::Json) | None => return Ok(None),
        };
        Ok(Some(leaf))
    }

    /// The leaf of a field that is no message, in a cell of its own or in that of another field.
    pub(super) fn value(
        &mut self,
        draft: usize,
        field: &FieldDescriptor,
        shared: Option<&Leaf>,
    ) -> Result<Leaf> {
        let path = self.path(draft, field);
        let Some((op, kind)) = value_of(field) else {
            return Err(Error::internal(format!(
                "a message is no value: path={path}"
            )));
        };
        match self.all[draft].wants.get(&field.number()) {
            Some(Want::Value { cell, flag, .. }) => {
                let (cell, flag) = (*cell, *flag);
                return Ok(Leaf {
                    path,
                    cell,
                    flag,
                    kind,
                });
            }
            Some(_) => return Err(self.twice(draft, field)),
            None => {}
        }
        let scope = self.all[draft].scope;
        let (cell, flag) = match shared {
            Some(leaf) => (leaf.cell, leaf.flag),
            None => self.cells(scope, &kind)?,
        };
        let wants = &mut self.all[draft].wants;
        wants.insert(field.number(), Want::Value { op, cell, flag });
        if let Some(default) = self.default(draft, field) {
            self.initial(draft, (cell, default));
            if flag != NOWHERE {
                self.initial(draft, (flag, 1));
            }
        }
        Ok(Leaf {
            path,
            cell,
            flag,
            kind,
        })
    }

    /// Cells of a value: its own, and where it has 64 bits one for its presence.
    fn cells(&mut self, scope: usize, kind: &Kind) -> Result<(u16, u16)> {
        if is_wide(kind) {
            return Ok((self.cell(scope, 0)?, self.cell(scope, 0)?));
        }
        let cell = self.cell(scope, ABSENT)?;
        if matches!(kind, Kind::Text) {
            self.scopes[scope].texts.push(cell);
        }
        Ok((cell, NOWHERE))
    }

    /// Sets what a cell is when the message is there.
    fn initial(&mut self, draft: usize, (cell, value): (u16, u64)) {
        if draft == 0 {
            self.scopes[0].template[usize::from(cell)] = value;
        } else {
            self.all[draft].initial.push((cell, value));
        }
    }

    /// What a field is when it is not there and its message is: its default, where it has no presence
    /// or where the `.proto` file declares one.
    fn default(&mut self, draft: usize, field: &FieldDescriptor) -> Option<u64> {
        let declared = field.field_descriptor_proto().default_value.is_some();
        let entry = self.all[draft].message.is_map_entry();
        if field.supports_presence() && !declared && !entry {
            return None;
        }
        if oneof_of(field).is_some() {
            return None;
        }
        Some(match field.default_value() {
            Value::Bool(set) => u64::from(set),
            Value::I32(number) | Value::EnumNumber(number) => u64::from(number as u32),
            Value::U32(number) => u64::from(number),
            Value::I64(number) => number as u64,
            Value::U64(number) => number,
            Value::F32(number) => u64::from(number.to_bits()),
            Value::F64(number) => number.to_bits(),
            Value::String(text) => self.constant(text.as_bytes()),
            Value::Bytes(bytes) => self.constant(&bytes),
            Value::Message(_) | Value::List(_) | Value::Map(_) => return None,
        })
    }

    fn constant(&mut self, bytes: &[u8]) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let from = self.constants.len();
        self.constants.extend_from_slice(bytes);
        constant(from, self.constants.len())
    }

    /// The leaf of a message that is kept as its bytes.
    pub(super) fn raw(&mut self, draft: usize, field: &FieldDescriptor) -> Result<Leaf> {
        let path = self.path(draft, field);
        let Type::Message(message) = field.kind() else {
            return Err(Error::internal(format!("no message: path={path}")));
        };
        let op = if field.is_group() {
            Op::RawGroup
        } else {
            Op::Raw
        };
        let cell = match self.all[draft].wants.get(&field.number()) {
            Some(Want::Value { cell, .. }) => *cell,
            Some(_) => return Err(self.twice(draft, field)),
            None => {
                let cell = self.cell(self.all[draft].scope, ABSENT)?;
                let flag = NOWHERE;
                let wants = &mut self.all[draft].wants;
                wants.insert(field.number(), Want::Value { op, cell, flag });
                if self.all[draft].message.is_map_entry() {
                    self.initial(draft, (cell, 0));
                }
                cell
            }
        };
        Ok(Leaf {
            path,
            cell,
            flag: NOWHERE,
            kind: Kind::Raw(message),
        })
    }

    /// The cell of a oneof's case, its own or that of another oneof.
    pub(super) fn oneof(
        &mut self,
        draft: usize,
        oneof: &OneofDescriptor,
        shared: Option<u16>,
    ) -> Result<u16> {
        if let Some(cell) = self.all[draft].oneofs.get(oneof.name()) {
            return Ok(*cell);
        }
        let cell = match shared {
            Some(cell) => cell,
            None => self.cell(self.all[draft].scope, 0)?,
        };
        let oneofs = &mut self.all[draft].oneofs;
        oneofs.insert(oneof.name().to_owned(), cell);
        Ok(cell)
    }

    /// The words of a oneof's cases, from case 1: what `word` makes of the names of its fields.
    pub(super) fn words(
        oneof: &OneofDescriptor,
        word: impl Fn(&str) -> Option<String>,
    ) -> Vec<Option<String>> {
        let fields = oneof.parent_message().fields();
        let words = fields.map(|field| {
            let within = oneof_of(&field).is_some_and(|o| o.name() == oneof.name());
            if within { word(field.name()) } else { None }
        });
        words.collect()
    }

    /// The elements of a repeated field; `raw`: those that are messages are kept as their bytes.
    pub(super) fn list(
        &mut self,
        draft: usize,
        field: &FieldDescriptor,
        raw: bool,
    ) -> Result<Elements> {
        let path = self.path(draft, field);
        let leaf = |cell, flag, kind| {
            ElementsOf::Values(Leaf {
                path: path.clone(),
                cell,
                flag,
                kind,
            })
        };
        let kind = match (value_of(field), field.kind()) {
            (Some((_, kind)), _) => kind,
            (None, Type::Message(message)) => Kind::Raw(message),
            (None, _) => return Err(Error::internal("a type that is not known")),
        };
        match self.all[draft].wants.get(&field.number()) {
            Some(Want::List { cell, scope, of }) => {
                let (cell, scope) = (*cell, *scope);
                let of = match *of {
                    ListOf::Values { cell, flag, .. } => leaf(cell, flag, kind),
                    ListOf::Messages { draft } => ElementsOf::Messages { draft },
                };
                return Ok(Elements { cell, scope, of });
            }
            Some(_) => return Err(self.twice(draft, field)),
            None => {}
        }
        let outer = self.all[draft].scope;
        let cell = self.cell(outer, 0)?;
        let scope = self.scopes.len();
        self.scopes.push(Scope::new());
        let inner = u16::try_from(scope - outer - 1).map_err(|_| too_large())?;
        self.scopes[outer].lists.push((cell, inner));
        let (want, of) = match field.kind() {
            Type::Message(message) if !raw => {
                let draft = self.add(message, scope, path.clone())?;
                (ListOf::Messages { draft }, ElementsOf::Messages { draft })
            }
            _ => {
                let op = match value_of(field) {
                    Some((op, _)) => op,
                    None if field.is_group() => Op::RawGroup,
                    None => Op::Raw,
                };
                let (cell, flag) = self.cells(scope, &kind)?;
                (ListOf::Values { op, cell, flag }, leaf(cell, flag, kind))
            }
        };
        let want = Want::List {
            cell,
            scope,
            of: want,
        };
        self.all[draft].wants.insert(field.number(), want);
        Ok(Elements { cell, scope, of })
    }
}
