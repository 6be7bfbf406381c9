//! Writing results to stdout, and numbers for people.

use std::io::{self, Write};

use serde::Serialize;

/// Writes a text to stdout at once.
///
/// # Errors
/// When stdout is closed or full.
pub(super) fn write(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a value as indented JSON and a line break.
///
/// # Errors
/// When stdout is closed or full.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    write(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// `98.4 MB`: powers of 1000, as disks and downloads are sold.
pub(super) fn bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"], " ")
}

/// `134.5M`: parameters.
pub(super) fn count(count: u64) -> String {
    scaled(count, &["", "K", "M", "B", "T"], "")
}

fn scaled(value: u64, units: &[&str], space: &str) -> String {
    let (mut scaled, mut unit) = (value as f64, 0);
    // From 999.95 on, one decimal would print 1000.0.
    while scaled >= 999.95 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value}{space}{}", units[0]) } else { format!("{scaled:.1}{space}{}", units[unit]) }
}

/// Columns padded to their widest cell; the last one isn't padded. `right` says which are right-aligned.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            line += &if right.contains(&column) { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Text from a file, safe for a terminal: control characters become spaces, long texts are cut.
pub(super) fn printable(text: &str, max_chars: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut out: String = text.chars().take(max_chars).map(clean).collect();
    if text.chars().nth(max_chars).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(count(134_515_008), "134.5M");
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".into(), "1".into(), "x".into()], vec!["bcd".into(), "100".into(), "y".into()]];
        assert_eq!(table(&rows, &[1]), "a      1  x\nbcd  100  y\n");
    }

    #[test]
    fn a_hostile_name_cant_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n", 4), "a [2…");
    }
}
