use std::convert::Infallible;
use std::fs;

use proptest::prelude::*;

use super::folder::KvFolder;
use super::record::record_bytes;
use super::*;
use crate::kv::{BLOCK_TOKENS, PrefixSpace};

const BYTES: usize = 300;
const LAYOUT: [u8; 32] = [7; 32];

fn tokens(id: u32) -> Tokens {
    std::array::from_fn(|i| id * 1000 + i as u32)
}

fn digest(id: u32) -> Digest {
    Digest::root(PrefixSpace(0)).next(&tokens(id))
}

fn content(id: u32) -> Vec<u8> {
    (0..BYTES as u32).map(|i| (i * 31 + id * 7) as u8).collect()
}

fn put(store: &mut BlockStore, id: u32) -> bool {
    let Ok(taken) = store.put(&digest(id), &tokens(id), |bytes| {
        bytes.extend(content(id));
        Ok::<_, Infallible>(())
    });
    taken
}

/// `None` for a miss; a wrong content fails the test.
fn get(store: &mut BlockStore, id: u32) -> Option<()> {
    store.flush();
    let bytes = store.get(&digest(id), &tokens(id))?;
    assert_eq!(bytes, content(id), "block {id}");
    Some(())
}

fn open(path: &Path, max_blocks: usize) -> Result<BlockStore, OpenError> {
    BlockStore::open(path, &LAYOUT, BYTES, max_blocks * record_bytes(BYTES))
}

#[test]
fn what_was_put_comes_back_and_the_oldest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let size = 3 * record_bytes(BYTES);
    for mut store in [BlockStore::memory(BYTES, size), open(&folder.path().join("a.kv"), 3).unwrap()] {
        assert!((0..3).all(|id| put(&mut store, id)));
        assert_eq!(get(&mut store, 0), Some(()), "it is used now");
        assert!(put(&mut store, 3));
        let there: Vec<bool> = (0..5).map(|id| get(&mut store, id).is_some()).collect();
        assert_eq!(there, [true, false, true, true, false]);
        assert_eq!(store.get(&digest(0), &tokens(1)), None, "other tokens under this digest");
    }
    assert!(!put(&mut BlockStore::memory(BYTES, size / 3 - 1), 0), "no room for one");
}

#[test]
fn a_block_that_cannot_be_read_leaves_no_trace() {
    let mut store = BlockStore::memory(BYTES, 10_000);
    assert_eq!(store.put(&digest(0), &tokens(0), |_| Err("refused")), Err("refused"));
    let long = store.put(&digest(0), &tokens(0), |bytes| {
        bytes.resize(bytes.len() + BYTES + 1, 0);
        Ok::<_, Infallible>(())
    });
    assert_eq!(long, Ok(false), "more than a block has");
    assert_eq!((store.len(), get(&mut store, 0)), (0, None));
    assert!(put(&mut store, 0) && get(&mut store, 0).is_some());
}

#[test]
fn a_file_outlives_its_store_and_keeps_the_order_of_age() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.kv");
    for round in 0..3 {
        let mut store = open(&path, 4).unwrap();
        assert_eq!(store.len(), [0, 2, 4][round]);
        for id in 2 * round as u32..2 * round as u32 + 2 {
            assert!(put(&mut store, id));
        }
    }
    let mut store = open(&path, 4).unwrap();
    let there: Vec<bool> = (0..6).map(|id| get(&mut store, id).is_some()).collect();
    assert_eq!(there, [false, false, true, true, true, true]);
    drop(store);
    assert_eq!(open(&path, 2).unwrap().len(), 2, "a smaller limit cuts it");
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096 + 2 * record_bytes(BYTES) as u64);
}

#[test]
fn one_process_at_a_time_and_no_foreign_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.kv");
    let store = open(&path, 2).unwrap();
    assert!(matches!(open(&path, 2), Err(OpenError::InUse(_))));
    drop(store);
    let foreign = folder.path().join("b.kv");
    fs::write(&foreign, "my thesis").unwrap();
    assert!(matches!(open(&foreign, 2), Err(OpenError::Foreign(_))));
    assert_eq!(fs::read(&foreign).unwrap(), b"my thesis");
    // Of another layout or another size of blocks it is emptied.
    let mut store = open(&path, 2).unwrap();
    assert!(put(&mut store, 0));
    drop(store);
    assert_eq!(BlockStore::open(&path, &[8; 32], BYTES, 10_000).unwrap().len(), 0);
    assert_eq!(BlockStore::open(&path, &[8; 32], 2 * BYTES, 10_000).unwrap().len(), 0);
    assert!(matches!(open(folder.path(), 2), Err(OpenError::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_a_miss_and_never_another_content(
        flips in prop::collection::vec((0..6000_usize, 1..=255_u8), 0..12),
        len in prop::option::of(0..6000_u64),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.kv");
        let mut store = open(&path, 3).unwrap();
        for id in 0..3 {
            put(&mut store, id);
        }
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        for (at, bits) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bits;
            }
        }
        if let Some(len) = len {
            bytes.truncate(len as usize);
        }
        fs::write(&path, &bytes).unwrap();
        match open(&path, 3) {
            Err(OpenError::Foreign(_)) => prop_assert!(bytes[..8.min(bytes.len())] != whole[..8.min(bytes.len())] || bytes.len() < 8),
            Err(error) => prop_assert!(false, "{}", error),
            Ok(mut store) => {
                for id in 0..3_u32 {
                    let slot = 4096 + id as usize * record_bytes(BYTES);
                    // The last bytes of a slot are no part of its record.
                    let record = slot..slot + 256 + BYTES;
                    let is_whole = bytes.get(record.clone()) == whole.get(record) && bytes[..4096] == whole[..4096];
                    prop_assert_eq!(get(&mut store, id).is_some(), is_whole, "block {}", id);
                }
                for id in 0..3 {
                    prop_assert!(put(&mut store, id) && get(&mut store, id).is_some(), "it works on");
                }
            }
        }
    }

    #[test]
    fn random_traces_keep_to_the_limit(
        calls in prop::collection::vec((any::<bool>(), 0..12_u32), 0..200),
        max_blocks in 1..8_usize,
        reopen_every in 20..50_usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.kv");
        let mut store = open(&path, max_blocks).unwrap();
        for (count, (puts, id)) in calls.into_iter().enumerate() {
            if count % reopen_every == reopen_every - 1 {
                let before = store.len();
                drop(store);
                store = open(&path, max_blocks).unwrap();
                prop_assert_eq!(store.len(), before);
            }
            if puts {
                prop_assert!(put(&mut store, id));
                prop_assert!(get(&mut store, id).is_some(), "it was just put");
            } else {
                get(&mut store, id);
            }
            prop_assert!(store.len() <= max_blocks);
            prop_assert_eq!(store.by_use.len(), store.len());
            prop_assert_eq!(store.slots.iter().flatten().count(), store.len());
        }
    }
}

#[test]
fn a_folder_knows_models_by_content_and_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let cache = KvFolder { path: folder.path().join("cache"), max_bytes: 20_000 };
    let model = folder.path().join("model.gguf");
    fs::write(&model, "weights").unwrap();
    let open = |cache: &KvFolder, layout: &str| cache.open("a/b: c", std::slice::from_ref(&model), layout, BYTES);
    let blocks = |store: BlockStore| (store.len(), store.max_blocks());

    let most = 20_000 / record_bytes(BYTES);
    let mut store = open(&cache, "one").unwrap();
    assert!((0..10).all(|id| put(&mut store, id)));
    drop(store);
    assert_eq!(blocks(open(&cache, "one").unwrap()), (10, most));
    assert_eq!(open(&cache, "two").unwrap().len(), 0, "another layout");
    let copy = folder.path().join("copy.gguf");
    fs::copy(&model, &copy).unwrap();
    let same = cache.open("a/b: c", std::slice::from_ref(&copy), "one", BYTES).unwrap();
    assert_eq!(same.len(), 10, "the same model elsewhere");
    drop(same);
    fs::write(&model, "Weights").unwrap();
    fs::File::options().write(true).open(&model).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let other = open(&cache, "one").unwrap();
    assert_eq!(other.len(), 0, "another content under the same name");

    // A limit that the unused files break: they go, the one in use and what is no store stay.
    let mine = cache.path.join("mine.kv");
    fs::write(&mine, vec![1; 9000]).unwrap();
    let small = KvFolder { max_bytes: 15_000, ..cache.clone() };
    let third = small.open("third", std::slice::from_ref(&copy), "three", BYTES).unwrap();
    assert_eq!(third.max_blocks(), (15_000 - 9000 - 4096) / record_bytes(BYTES));
    let is_store = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "kv");
    let num_stores = fs::read_dir(&cache.path).unwrap().filter(|entry| is_store(entry.as_ref().unwrap())).count();
    assert!(mine.exists() && num_stores == 3, "{num_stores}");
    drop((other, third));
}

#[test]
fn digests_depend_on_every_token_and_on_the_space() {
    let text: Vec<u32> = (0..3 * BLOCK_TOKENS as u32).collect();
    let of = |space, text: &[u32]| Digest::of(PrefixSpace(space), text);
    let mut seen = vec![of(0, &text), of(1, &text), of(0, &text[..64]), of(0, &[])];
    for i in 0..text.len() {
        let mut other = text.clone();
        other[i] += 1;
        seen.push(of(0, &other));
    }
    let num = seen.len();
    seen.sort_by_key(|digest| digest.0);
    seen.dedup();
    assert_eq!(seen.len(), num);
    assert_eq!(of(0, &text[..95]), of(0, &text[..64]), "a begun block doesn't count");
}
