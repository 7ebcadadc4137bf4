//! Numbered cells for values, in small pages, so that growing never moves or copies anything.

use crate::account::heap::heap_bytes;

/// Values under indices that are used again, `PAGE` of them in an allocation.
#[derive(Debug)]
pub(crate) struct Slab<T, const PAGE: usize = 16> {
    pages: Pages<T>,
    free: Option<u32>,
    live: usize,
    /// The pages that removing the last value left, if they are many.
    spent: Pages<T>,
}

type Pages<T> = Vec<Box<[Cell<T>]>>;

/// Pages that are dropped in the time that a value takes.
const FEW: usize = 64;

#[derive(Debug)]
pub(crate) enum Cell<T> {
    Free(Option<u32>),
    Taken(T),
}

impl<T, const PAGE: usize> Default for Slab<T, PAGE> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            free: None,
            live: 0,
            spent: Vec::new(),
        }
    }
}

impl<T, const PAGE: usize> Slab<T, PAGE> {
    /// Bytes on the heap.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages.len() as u64 * heap_bytes(PAGE * size_of::<Cell<T>>())
            + heap_bytes(self.pages.capacity() * size_of::<Box<[Cell<T>]>>())
    }

    /// Bytes that the next [`Slab::insert`] takes from the heap.
    pub(crate) fn growth(&self) -> u64 {
        if self.free.is_some() {
            return 0;
        }
        let pages = self.pages.capacity();
        let list = if self.pages.len() == pages {
            let unit = size_of::<Box<[Cell<T>]>>();
            heap_bytes((pages * 2).max(4) * unit) - heap_bytes(pages * unit)
        } else {
            0
        };
        heap_bytes(PAGE * size_of::<Cell<T>>()) + list
    }

    /// Puts a value at a free cell. Gives it back when there is no memory.
    pub(crate) fn insert(&mut self, value: T) -> Result<u32, T> {
        if self.free.is_none() && !self.grow() {
            return Err(value);
        }
        let Some(index) = self.free else {
            return Err(value);
        };
        let cell = &mut self.pages[index as usize / PAGE][index as usize % PAGE];
        if let Cell::Free(next) = cell {
            self.free = *next;
        }
        *cell = Cell::Taken(value);
        self.live += 1;
        Ok(index)
    }

    fn grow(&mut self) -> bool {
        let first = self.pages.len() * PAGE;
        let Ok(first) = u32::try_from(first) else {
            return false;
        };
        if self.pages.len() == self.pages.capacity()
            && self
                .pages
                .try_reserve_exact(self.pages.capacity().max(4).max(self.pages.len()))
                .is_err()
        {
            return false;
        }
        let mut page = Vec::new();
        if page.try_reserve_exact(PAGE).is_err() {
            return false;
        }
        let end = first + PAGE as u32;
        page.extend((first..end).map(|index| Cell::Free((index + 1 < end).then_some(index + 1))));
        self.pages.push(page.into_boxed_slice());
        self.free = Some(first);
        true
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        match self
            .pages
            .get(index as usize / PAGE)?
            .get(index as usize % PAGE)?
        {
            Cell::Taken(value) => Some(value),
            Cell::Free(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self
            .pages
            .get_mut(index as usize / PAGE)?
            .get_mut(index as usize % PAGE)?
        {
            Cell::Taken(value) => Some(value),
            Cell::Free(_) => None,
        }
    }

    /// Takes a value out. The pages are freed with the last one; if they are many, they are [`Slab::spent`].
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let cell = self
            .pages
            .get_mut(index as usize / PAGE)?
            .get_mut(index as usize % PAGE)?;
        if matches!(cell, Cell::Free(_)) {
            return None;
        }
        let taken = std::mem::replace(cell, Cell::Free(self.free));
        self.free = Some(index);
        self.live -= 1;
        if self.live == 0 {
            let pages = std::mem::take(&mut self.pages);
            if pages.len() > FEW {
                self.spent = pages;
            }
            self.free = None;
        }
        match taken {
            Cell::Taken(value) => Some(value),
            Cell::Free(_) => None,
        }
    }

    /// Pages that are not needed and take long to drop: for a caller that holds no lock.
    pub(crate) fn spent(&mut self) -> Option<Pages<T>> {
        (!self.spent.is_empty()).then(|| std::mem::take(&mut self.spent))
    }

    /// Numbers that may be taken are below this.
    pub(crate) fn end(&self) -> u32 {
        (self.pages.len() * PAGE) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_used_again_and_the_memory_goes_with_the_last_value() {
        let mut slab = Slab::<u64>::default();
        let mut charged = 0;
        for value in 0..100u64 {
            charged += slab.growth();
            assert_eq!(slab.insert(value), Ok(value as u32));
            assert_eq!(slab.bytes(), charged);
        }
        assert_eq!(slab.remove(7), Some(7));
        assert_eq!(slab.remove(7), None);
        assert_eq!(slab.growth(), 0);
        assert_eq!(slab.insert(1000), Ok(7));
        assert_eq!(slab.get(7), Some(&1000));
        assert_eq!(slab.get(4000), None);
        for index in 0..100 {
            assert!(slab.remove(index).is_some());
        }
        assert_eq!((slab.bytes(), slab.end()), (0, 0));
        assert!(slab.spent().is_none(), "few pages go at once");
    }

    #[test]
    fn many_pages_are_left_to_be_dropped_later() {
        let mut slab = Slab::<u64>::default();
        let values = (FEW as u32 + 1) * 16;
        for value in 0..values {
            assert_eq!(slab.insert(u64::from(value)), Ok(value));
        }
        for index in 0..values {
            assert!(slab.remove(index).is_some() && (slab.spent.is_empty() || index + 1 == values));
        }
        assert_eq!((slab.bytes(), slab.end()), (0, 0));
        assert_eq!(slab.spent().map(|pages| pages.len()), Some(FEW + 1));
        assert!(slab.spent().is_none());
        assert_eq!(slab.insert(7), Ok(0));
    }
}
