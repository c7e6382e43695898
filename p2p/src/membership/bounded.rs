//! Lists from strangers: their length is checked before anything is kept of them.

use std::fmt::{Formatter, Result as FmtResult};
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads a list of at most `MAX` elements, allocating for no more.
///
/// **Errors** at the first element too many.
pub(super) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

struct List<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::with_capacity(elements.size_hint().unwrap_or(0).min(MAX));
        while let Some(element) = elements.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Few(#[serde(deserialize_with = "list::<_, _, 3>")] Vec<u8>);

    #[test]
    fn a_list_may_be_full_but_not_longer() {
        for (bytes, expected) in [
            (&[0][..], Some(vec![])),
            (&[3, 1, 2, 3], Some(vec![1, 2, 3])),
            (&[4, 1, 2, 3, 4], None),
        ] {
            let read = postcard::from_bytes::<Few>(bytes).ok();
            assert_eq!(read.map(|few| few.0), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_length_of_everything_allocates_nothing() {
        let claim = [0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(postcard::from_bytes::<Few>(&claim).is_err());
    }
}
