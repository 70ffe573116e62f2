//! Plain text tables: columns as wide as their widest cell, numbers to the right.

use std::fmt;

/// Rows of cells below a heading.
#[derive(Debug, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        Self { heading: heading.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    fn width(&self, column: usize) -> usize {
        self.lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.heading).chain(&self.rows)
    }

    /// Whether every filled cell below the heading of `column` starts with a digit.
    fn numeric(&self, column: usize) -> bool {
        let mut cells = self
            .rows
            .iter()
            .filter_map(|row| row.get(column))
            .filter(|cell| !cell.is_empty() && *cell != "-")
            .peekable();
        cells.peek().is_some() && cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.heading.len();
        let shape: Vec<(usize, bool)> =
            (0..columns).map(|column| (self.width(column), self.numeric(column))).collect();
        for (index, row) in self.lines().enumerate() {
            let mut line = String::new();
            for (column, (width, numeric)) in shape.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                if *numeric {
                    line.push_str(&format!("{cell:>width$}  "));
                } else {
                    line.push_str(&format!("{cell:<width$}  "));
                }
            }
            writeln!(f, "  {}", line.trim_end())?;
            if index == 0 {
                let total: usize = shape.iter().map(|(width, _)| width + 2).sum();
                writeln!(f, "  {}", "-".repeat(total.saturating_sub(2)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_align_right_and_text_left() {
        let mut table = Table::new(&["case", "requests"]);
        table.row(&["copy", "7"]);
        table.row(&["a longer name", "12"]);
        let text = table.to_string();
        assert!(text.contains("  copy                  7\n"), "{text}");
        assert!(text.contains("  a longer name        12\n"), "{text}");
    }
}
