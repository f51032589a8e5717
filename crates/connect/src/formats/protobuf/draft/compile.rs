//! Makes tables of drafts, once all columns have asked for their fields.

use calve_engine::Result;
use prost_reflect::{FieldDescriptor, MessageDescriptor, OneofDescriptor};

use super::{Drafts, ListOf, Want, oneof_of, too_large, value_of};
use crate::formats::protobuf::table::{Action, Clear, Element, NOWHERE, Op, Scope, Table, Tables};

/// Which case of its oneofs a field is, from 1.
fn case_of(message: &MessageDescriptor, field: &FieldDescriptor) -> u16 {
    let place = message.fields().position(|f| f.number() == field.number());
    place.map_or(0, |place| place as u16 + 1)
}

impl Drafts {
    /// Makes tables of the drafts.
    pub(in crate::formats::protobuf) fn finish(mut self) -> Result<(Tables, Vec<Scope>)> {
        for at in 0..self.all.len() {
            self.track_oneofs(at)?;
            self.complete_entry(at);
        }
        let mut tables = Tables {
            constants: std::mem::take(&mut self.constants),
            ..Tables::default()
        };
        for at in 0..self.all.len() {
            let table = self.table(at, &mut tables.elements)?;
            tables.all.push(table);
        }
        Ok((tables, self.scopes))
    }

    /// Gives a cell to each oneof of which something is wanted.
    fn track_oneofs(&mut self, at: usize) -> Result<()> {
        let draft = &self.all[at];
        let wanted: Vec<OneofDescriptor> = draft
            .wants
            .keys()
            .filter_map(|number| oneof_of(&draft.message.get_field(*number)?))
            .collect();
        for oneof in wanted {
            self.oneof(at, &oneof, None)?;
        }
        Ok(())
    }

    /// The value of a map's entry is there also when the entry does not say so.
    fn complete_entry(&mut self, at: usize) {
        if !self.all[at].message.is_map_entry() {
            return;
        }
        if let Some(Want::Message { draft }) = self.all[at].wants.get(&2) {
            let value = &self.all[*draft];
            let mut initial = value.initial.clone();
            initial.push((value.present, 1));
            self.all[at].initial.extend(initial);
        }
    }

    fn table(&self, at: usize, elements: &mut Vec<Element>) -> Result<Table> {
        let draft = &self.all[at];
        let message = &draft.message;
        let mut by_key = Vec::new();
        let mut clears: Vec<Clear> = Vec::new();
        for field in message.fields() {
            let oneof = oneof_of(&field).and_then(|o| draft.oneofs.get(o.name()));
            let want = draft.wants.get(&field.number());
            if want.is_none() && oneof.is_none() {
                continue;
            }
            let case = case_of(message, &field);
            if oneof.is_some() {
                clears.resize_with(clears.len().max(usize::from(case)), Clear::default);
                clears[usize::from(case) - 1] = self.clear(at, field.number());
            }
            let base = Action {
                oneof: oneof.copied().unwrap_or(NOWHERE),
                case,
                ..Action::SKIP
            };
            for (op, action) in self.actions(base, draft.scope, &field, want, elements)? {
                let key = field.number() << 3 | op.wire_type();
                by_key.push((key, action, field.name().to_owned()));
            }
        }
        let mut table = Table::new(by_key);
        table.initial.clone_from(&draft.initial);
        table.clears = clears;
        Ok(table)
    }

    /// The actions of a field, each with what gives its wire type.
    fn actions(
        &self,
        base: Action,
        scope: usize,
        field: &FieldDescriptor,
        want: Option<&Want>,
        elements: &mut Vec<Element>,
    ) -> Result<Vec<(Op, Action)>> {
        let message_op = if field.is_group() {
            Op::Group
        } else {
            Op::Message
        };
        let enter = |base: Action, draft: usize| Action {
            op: message_op,
            cell: self.all[draft].present,
            table: draft as u16,
            ..base
        };
        let Some(want) = want else {
            // Another case of a oneof: of a wire type that is not its own it is unknown.
            let op = value_of(field).map_or(message_op, |(op, _)| op);
            return Ok(vec![(op, base)]);
        };
        Ok(match *want {
            Want::Value { op, cell, flag } => vec![(
                op,
                Action {
                    op,
                    cell,
                    flag,
                    ..base
                },
            )],
            Want::Message { draft } => vec![(message_op, enter(base, draft))],
            Want::List {
                scope: of_list, of, ..
            } => {
                let element = match of {
                    ListOf::Values { op, cell, flag } => Action {
                        op,
                        cell,
                        flag,
                        ..Action::SKIP
                    },
                    ListOf::Messages { draft } => enter(Action::SKIP, draft),
                };
                let table = u16::try_from(elements.len()).map_err(|_| too_large())?;
                elements.push(Element {
                    scope: (of_list - scope - 1) as u16,
                    action: element,
                });
                let push = |op| Action { op, table, ..base };
                let mut actions = vec![(element.op, push(Op::Push))];
                if element.op.packs() {
                    actions.push((Op::PushPacked, push(Op::PushPacked)));
                }
                actions
            }
        })
    }

    /// What is undone of a field when another case comes.
    fn clear(&self, at: usize, number: u32) -> Clear {
        let mut clear = Clear::default();
        self.undo(at, number, &mut clear);
        clear
    }

    fn undo(&self, at: usize, number: u32, clear: &mut Clear) {
        let draft = &self.all[at];
        let scope = &self.scopes[draft.scope];
        let mut add = |cell: u16| {
            if cell == NOWHERE {
                return;
            }
            clear.cells.push((cell, scope.template[usize::from(cell)]));
            if scope.texts.contains(&cell) {
                clear.texts.push(cell);
            }
        };
        match draft.wants.get(&number) {
            None => {}
            Some(Want::Value { cell, flag, .. }) => {
                add(*cell);
                add(*flag);
            }
            Some(Want::Message { draft }) => {
                let inner = &self.all[*draft];
                add(inner.present);
                inner.oneofs.values().for_each(|cell| add(*cell));
                for number in inner.wants.keys() {
                    self.undo(*draft, *number, clear);
                }
            }
            Some(Want::List { cell, .. }) => {
                let list = scope.lists.iter().find(|(known, _)| known == cell);
                clear.lists.extend(list);
            }
        }
    }
}
