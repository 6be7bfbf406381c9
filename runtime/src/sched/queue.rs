//! Who waits, and whose turn it is: by priority, then those who had started before, then one request of each client in
//! turn, and of one client in the order of arrival.

use std::collections::{BTreeMap, VecDeque};

use super::sequence::{SeqId, Sequence};

/// The waiting sequences. None of them owns a block.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    /// By priority; no class is empty.
    classes: BTreeMap<i32, Class>,
    len: usize,
}

/// All of one priority.
#[derive(Debug, Default)]
struct Class {
    /// Those that lost their blocks, first what ran before the others.
    resumed: VecDeque<Sequence>,
    /// In the order of their turns; no line is empty.
    clients: VecDeque<Line>,
}

/// What one client waits for.
#[derive(Debug)]
struct Line {
    client: u64,
    sequences: VecDeque<Sequence>,
}

impl WaitQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.classes
            .values()
            .flat_map(|class| class.resumed.iter().chain(class.clients.iter().flat_map(|line| &line.sequences)))
    }

    /// A new sequence, at the end of its client's line.
    pub(super) fn push(&mut self, sequence: Sequence) {
        self.len += 1;
        let clients = &mut self.classes.entry(sequence.class.priority).or_default().clients;
        let client = sequence.class.client;
        match clients.iter_mut().find(|line| line.client == client) {
            Some(line) => line.sequences.push_back(sequence),
            None => clients.push_back(Line { client, sequences: [sequence].into() }),
        }
    }

    /// A sequence that lost its blocks, or a fork that got none. Whoever loses them later ran before it.
    pub(super) fn resume(&mut self, sequence: Sequence) {
        self.len += 1;
        self.classes.entry(sequence.class.priority).or_default().resumed.push_front(sequence);
    }

    /// Whose turn it is.
    pub(super) fn front(&self) -> Option<&Sequence> {
        let (_, class) = self.classes.first_key_value()?;
        class.resumed.front().or_else(|| class.clients.front()?.sequences.front())
    }

    /// Takes [`front`](Self::front).
    pub(super) fn pop(&mut self) -> Option<Sequence> {
        let mut entry = self.classes.first_entry()?;
        let class = entry.get_mut();
        let sequence = match class.resumed.pop_front() {
            Some(sequence) => Some(sequence),
            None => class.clients.pop_front().and_then(|mut line| {
                let sequence = line.sequences.pop_front();
                if !line.sequences.is_empty() {
                    class.clients.push_back(line);
                }
                sequence
            }),
        };
        if class.is_empty() {
            entry.remove();
        }
        self.len -= usize::from(sequence.is_some());
        sequence
    }

    /// A sequence in its place.
    pub(super) fn get_mut(&mut self, id: SeqId) -> Option<&mut Sequence> {
        self.classes.values_mut().find_map(|class| match class.find(id)? {
            Place::Resumed(index) => class.resumed.get_mut(index),
            Place::Line(line, index) => class.clients[line].sequences.get_mut(index),
        })
    }

    /// Takes a sequence out of its place.
    pub(super) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let (&priority, class) = self.classes.iter_mut().find(|(_, class)| class.find(id).is_some())?;
        let sequence = match class.find(id)? {
            Place::Resumed(index) => class.resumed.remove(index),
            Place::Line(line, index) => {
                let sequence = class.clients[line].sequences.remove(index);
                if class.clients[line].sequences.is_empty() {
                    class.clients.remove(line);
                }
                sequence
            }
        };
        if class.is_empty() {
            self.classes.remove(&priority);
        }
        self.len -= usize::from(sequence.is_some());
        sequence
    }
}

enum Place {
    Resumed(usize),
    /// Which line, and where in it.
    Line(usize, usize),
}

impl Class {
    fn is_empty(&self) -> bool {
        self.resumed.is_empty() && self.clients.is_empty()
    }

    fn find(&self, id: SeqId) -> Option<Place> {
        if let Some(index) = self.resumed.iter().position(|sequence| sequence.id == id) {
            return Some(Place::Resumed(index));
        }
        self.clients.iter().enumerate().find_map(|(line, of_client)| {
            let index = of_client.sequences.iter().position(|sequence| sequence.id == id)?;
            Some(Place::Line(line, index))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::Class as Kind;

    fn sequence(id: u64, priority: i32, client: u64) -> Sequence {
        Sequence::new(SeqId(id), 1, Kind { priority, client }, None)
    }

    fn drain(queue: &mut WaitQueue) -> Vec<u64> {
        std::iter::from_fn(|| {
            let front = queue.front().map(|sequence| sequence.id);
            let taken = queue.pop().map(|sequence| sequence.id);
            assert_eq!(front, taken);
            taken.map(|id| id.0)
        })
        .collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut queue = WaitQueue::default();
        for (id, client) in [(0, 7), (1, 7), (2, 7), (3, 8), (4, 9), (5, 8)] {
            queue.push(sequence(id, 0, client));
        }
        assert_eq!(queue.len(), 6);
        assert_eq!(drain(&mut queue), [0, 3, 4, 1, 5, 2]);
        assert!(queue.is_empty() && queue.classes.is_empty());
    }

    #[test]
    fn a_lower_number_goes_first_and_who_had_started_before_who_had_not() {
        let mut queue = WaitQueue::default();
        for (id, priority) in [(0, 0), (1, 5), (2, -1), (3, 0)] {
            queue.push(sequence(id, priority, id));
        }
        queue.resume(sequence(11, 0, 1));
        queue.resume(sequence(10, 0, 1));
        assert_eq!(drain(&mut queue), [2, 10, 11, 0, 3, 1]);
    }

    #[test]
    fn whoever_leaves_leaves_no_empty_place() {
        let mut queue = WaitQueue::default();
        for (id, client) in [(0, 7), (1, 7), (2, 8)] {
            queue.push(sequence(id, 0, client));
        }
        queue.resume(sequence(3, 0, 9));
        for id in [3, 2, 0] {
            assert_eq!(queue.remove(SeqId(id)).map(|sequence| sequence.id.0), Some(id));
        }
        assert!(queue.remove(SeqId(0)).is_none());
        assert_eq!((queue.len(), queue.iter().count()), (1, 1));
        assert_eq!(drain(&mut queue), [1]);
        assert!(queue.classes.is_empty());
    }
}
