//! A stack's control-plane table as its programs see it.
//!
//! Programs map the memfd for reading; the daemon writes it as a file, which is coherent with the
//! mappings and works alike for a table of its own and for one whose first writer is gone. The
//! sequence word at offset 0 is odd while the table is being written (`bypass_runtime::cplane`).
//!
//! Only root can write the file, so it also says, for the next daemon, to which stack it belongs:
//! between sequence word and table stand the cookie of the network namespace and the inodes of
//! stack image and packet memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bypass_runtime::cplane::{Cplane, TABLE_OFFSET};
use bypass_stack::cplane::Table;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::statics::Statics;

/// Offsets of the words that say to which stack a table belongs.
const NAMESPACE: usize = 8;
const IMAGE: usize = 16;
const PACKETS: usize = 24;

/// To which stack a table belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Belongs {
    /// Cookie of the network namespace.
    pub namespace: u64,
    /// Inode of the stack image.
    pub image: u64,
    /// Inode of the packet memory.
    pub packets: u64,
}

/// A table that is being published.
pub(super) struct Published {
    writer: OwnedFd,
    /// What programs get: opened for reading only.
    reader: OwnedFd,
    sequence: u64,
    table: Box<Table>,
}

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Published")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Published {
    /// Makes an empty table for a stack.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn make(belongs: Belongs) -> Result<Self, Errno> {
        let (writer, _) = Cplane::create()?;
        // Nobody but root can open it again for writing.
        rustix::fs::fchmod(&writer, Mode::RUSR)?;
        let published = Self::over(writer)?;
        published.write(&belongs.namespace.to_ne_bytes(), NAMESPACE)?;
        published.write(&belongs.image.to_ne_bytes(), IMAGE)?;
        published.write(&belongs.packets.to_ne_bytes(), PACKETS)?;
        Ok(published)
    }

    /// Goes on with a table that another daemon has published for this stack.
    ///
    /// # Errors
    /// `EINVAL` for any other file or stack; else what the kernel answers.
    pub(super) fn adopt(writer: OwnedFd, belongs: Belongs) -> Result<Self, Errno> {
        Cplane::map(&writer)?;
        let mut published = Self::over(writer)?;
        let found = Belongs {
            namespace: published.word(NAMESPACE)?,
            image: published.word(IMAGE)?,
            packets: published.word(PACKETS)?,
        };
        if found != belongs {
            return Err(Errno::INVAL);
        }
        published.sequence = published.word(0)?;
        // Programs keep answers as long as the generation stays: it must go on from theirs.
        let mut generation = [0; 4];
        rustix::io::pread(&published.writer, &mut generation, TABLE_OFFSET as u64)?;
        published.table.generation = u32::from_ne_bytes(generation);
        Ok(published)
    }

    /// Writes the static filters down for the next daemon.
    ///
    /// # Errors
    /// What `pwrite` answers.
    pub(super) fn save(&self, statics: &Statics) -> Result<(), Errno> {
        statics.save(|bytes, offset| self.write(bytes, offset))
    }

    /// The static filters that a daemon before has written down.
    ///
    /// # Errors
    /// What `pread` answers.
    pub(super) fn load(&self) -> Result<Statics, Errno> {
        Statics::load(|bytes, offset| {
            let read = rustix::io::pread(&self.writer, &mut *bytes, offset as u64)?;
            if read == bytes.len() {
                Ok(())
            } else {
                Err(Errno::IO)
            }
        })
    }

    fn word(&self, offset: usize) -> Result<u64, Errno> {
        let mut word = [0; 8];
        rustix::io::pread(&self.writer, &mut word, offset as u64)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn over(writer: OwnedFd) -> Result<Self, Errno> {
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let reader = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            writer,
            reader,
            sequence: 0,
            table: Box::new(Table::new_zeroed()),
        })
    }

    /// Publishes a table; `change` adds what only this stack has.
    ///
    /// # Errors
    /// What `pwrite` answers; then programs go on asking until the next attempt.
    pub(super) fn publish(
        &mut self,
        table: &Table,
        change: impl FnOnce(&mut Table),
    ) -> Result<(), Errno> {
        let generation = self.table.generation.wrapping_add(1);
        self.table.as_mut_bytes().copy_from_slice(table.as_bytes());
        change(&mut self.table);
        self.table.generation = generation;
        self.sequence |= 1;
        self.write(&self.sequence.to_ne_bytes(), 0)?;
        self.write(self.table.as_bytes(), TABLE_OFFSET)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.write(&self.sequence.to_ne_bytes(), 0)
    }

    /// The table that was published last.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    fn write(&self, bytes: &[u8], offset: usize) -> Result<(), Errno> {
        let written = rustix::io::pwrite(&self.writer, bytes, offset as u64)?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }
}

const _: () = assert!(std::mem::offset_of!(Table, generation) == 0);
const _: () = assert!(PACKETS + 8 <= TABLE_OFFSET);

impl AsFd for Published {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Belongs = Belongs {
        namespace: 7,
        image: 9,
        packets: 11,
    };

    #[test]
    fn readers_see_what_was_published_last() {
        let mut published = Published::make(HERE).expect("table");
        let reader = Cplane::map(&published).expect("map");
        let table = Table::new_zeroed();
        for overflow in [1, 0, 1] {
            let before = reader.read(|table| table.generation);
            published
                .publish(&table, |own| own.overflow = overflow)
                .expect("publish");
            assert_eq!(reader.read(|table| table.overflow), Some(overflow));
            assert_ne!(reader.read(|table| table.generation), before);
        }
    }

    #[test]
    fn a_later_daemon_goes_on_with_the_generation() {
        let mut first = Published::make(HERE).expect("table");
        let table = Table::new_zeroed();
        first.publish(&table, |_| ()).expect("publish");
        let writer = first.writer.try_clone().expect("clone");
        let elsewhere = Belongs {
            namespace: 8,
            ..HERE
        };
        let again = writer.try_clone().expect("clone");
        assert_eq!(Published::adopt(again, elsewhere).err(), Some(Errno::INVAL));
        let mut second = Published::adopt(writer, HERE).expect("adopt");
        second.publish(&table, |_| ()).expect("publish");
        let reader = Cplane::map(&first).expect("map");
        assert_eq!(reader.read(|table| table.generation), Some(2));
    }
}
