//! Item ids of many rows in one piece of memory.
//!
//! A million strings of their own would cost a million allocations when a shard is loaded, and as many when it goes.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    text: String,
    /// Where each id ends.
    ends: Vec<u32>,
}

/// Rows in the order of their ids' bytes.
#[derive(Debug)]
pub(crate) enum Order {
    /// As they lie.
    Rows,
    /// In this order.
    Listed(Vec<u32>),
}

impl Ids {
    /// Copies ids; refuses more text than offsets of 32 bits can tell.
    pub fn of<'a>(ids: impl ExactSizeIterator<Item = &'a str> + Clone) -> Result<Self> {
        let mut all = Self { text: String::new(), ends: Vec::with_capacity(ids.len()) };
        all.text.reserve_exact(ids.clone().map(str::len).sum());
        ids.into_iter().try_for_each(|id| all.push(id))?;
        Ok(all)
    }

    /// From text and ends as [`Self::parts`] has them; `None` where they don't fit each other.
    pub fn from_parts(text: Vec<u8>, ends: Vec<u32>) -> Option<Self> {
        let text = String::from_utf8(text).ok()?;
        let ascend = ends.is_sorted() && ends.last().copied().unwrap_or(0) as usize == text.len();
        let whole = ends.iter().all(|end| text.is_char_boundary(*end as usize));
        (ascend && whole).then_some(Self { text, ends })
    }

    /// The text of all ids, and where each ends.
    pub fn parts(&self) -> (&[u8], &[u32]) {
        (self.text.as_bytes(), &self.ends)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn get(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start as usize..self.ends[row] as usize]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|row| self.get(row))
    }

    pub fn push(&mut self, id: &str) -> Result<()> {
        self.text.push_str(id);
        let end = u32::try_from(self.text.len()).map_err(|_| Error::invalid("item ids of more than 4 GiB"))?;
        self.ends.push(end);
        Ok(())
    }

    /// Room for more ids.
    pub fn reserve(&mut self, ids: usize) {
        self.ends.reserve_exact(ids);
    }

    /// Gives back what was reserved in vain.
    pub fn shrink(&mut self) {
        self.text.shrink_to_fit();
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * 4
    }

    /// The rows in the order of their ids; refuses empty ids and duplicates.
    pub fn order(&self) -> Result<Order> {
        let ascends = |row: &usize| self.get(row - 1).as_bytes() < self.get(*row).as_bytes();
        let first_empty = self.len() > 0 && self.get(0).is_empty();
        if !first_empty && (1..self.len()).all(|row| ascends(&row)) {
            return Ok(Order::Rows);
        }
        let mut keyed: Vec<(u64, u32)> = (0..self.len()).map(|row| (self.key(row), row as u32)).collect();
        keyed.par_sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| self.compare(a.1, b.1)).then(a.1.cmp(&b.1)));
        let order: Vec<u32> = keyed.into_iter().map(|(_, row)| row).collect();
        self.check(&order)?;
        Ok(Order::Listed(order))
    }

    /// Whether the ids ascend in this order, strictly, and none is empty.
    pub fn is_in(&self, order: &Order) -> bool {
        let filled = (0..self.len()).all(|row| !self.get(row).is_empty());
        let ascends = match order {
            Order::Rows => (1..self.len()).all(|row| self.compare(row as u32 - 1, row as u32).is_lt()),
            Order::Listed(rows) => {
                rows.len() == self.len()
                    && rows.iter().all(|row| (*row as usize) < self.len())
                    && rows.windows(2).all(|pair| self.compare(pair[0], pair[1]).is_lt())
            }
        };
        filled && ascends
    }

    fn check(&self, order: &[u32]) -> Result<()> {
        if let Some(first) = order.first().filter(|row| self.get(**row as usize).is_empty()) {
            return Err(Error::invalid(format!("row {first} has an empty item id")));
        }
        if let Some(pair) = order.windows(2).find(|pair| self.compare(pair[0], pair[1]) == Ordering::Equal) {
            let (first, second) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            let item = self.get(first as usize);
            return Err(Error::invalid(format!("item `{item}` stands in rows {first} and {second}")));
        }
        Ok(())
    }

    /// The first bytes, ordered as the id is: most comparisons need no more.
    fn key(&self, row: usize) -> u64 {
        let mut key = [0; 8];
        let id = self.get(row).as_bytes();
        let count = id.len().min(8);
        key[..count].copy_from_slice(&id[..count]);
        u64::from_be_bytes(key)
    }

    fn compare(&self, a: u32, b: u32) -> Ordering {
        self.get(a as usize).as_bytes().cmp(self.get(b as usize).as_bytes())
    }

    /// The row of an id.
    pub fn find(&self, order: &Order, id: &str) -> Option<u32> {
        let place = |at: usize| match order {
            Order::Rows => at as u32,
            Order::Listed(rows) => rows[at],
        };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.get(place(middle) as usize).as_bytes().cmp(id.as_bytes()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(place(middle)),
            }
        }
        None
    }
}

impl Order {
    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rows => 0,
            Self::Listed(rows) => rows.capacity() * 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Ids {
        Ids::of(ids.iter().copied()).unwrap()
    }

    #[test]
    fn every_id_is_found_whether_rows_are_in_order_or_not() {
        for list in [
            vec!["a", "aa", "b", "long common beginning 1", "long common beginning 2", "é"],
            vec!["z", "long common beginning 2", "a", "long common beginning 1", "a\0", "é"],
        ] {
            let all = ids(&list);
            let order = all.order().unwrap();
            for (row, id) in list.iter().enumerate() {
                assert_eq!((all.get(row), all.find(&order, id)), (*id, Some(row as u32)));
            }
            assert_eq!(all.find(&order, "long common beginning 3"), None);
            assert_eq!(all.find(&order, ""), None);
        }
    }

    #[test]
    fn empty_and_doubled_ids_are_named() {
        let message = |list: &[&str]| ids(list).order().unwrap_err().to_string();
        assert_eq!(message(&["b", "a", "b"]), "item `b` stands in rows 0 and 2");
        assert_eq!(message(&["a", "a"]), "item `a` stands in rows 0 and 1");
        assert_eq!(message(&["b", "", "a"]), "row 1 has an empty item id");
        assert_eq!(message(&[""]), "row 0 has an empty item id");
        assert!(matches!(ids(&[]).order().unwrap(), Order::Rows));
    }
}
