//! Reads CSV as RFC 4180 has it.

/// The lines of a CSV text, each as its fields; the header line is the first.
pub fn parse(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            other => field.push(other),
        }
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_newlines() {
        let rows = parse("a,b\n\"x, \"\"y\"\"\",\n\"two\nlines\",3\n");
        assert_eq!(rows, [vec!["a", "b"], vec!["x, \"y\"", ""], vec!["two\nlines", "3"]]);
        assert_eq!(parse("a\n1"), [vec!["a"], vec!["1"]]);
    }
}
