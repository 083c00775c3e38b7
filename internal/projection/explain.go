package projection

import "strings"

// ExplainFullScan reports whether SQLite would walk a whole table or index to answer sql, and the plan
// it has. Domains' tests refuse such statements: a read must cost what it returns. Walks over a
// table-valued function, a subquery's rows and constant rows do not count. Tests only: it prepares sql
// with all parameters NULL.
func ExplainFullScan(r *Reader, sql string) (full bool, plan string) {
	st, _, err := r.c.c.PrepareTransient("EXPLAIN QUERY PLAN " + sql)
	if err != nil {
		return true, "not a statement: " + err.Error()
	}
	defer st.Finalize() //nolint:errcheck // repeats the error of Step
	var lines []string
	named := map[string]bool{} // subqueries and common table expressions, which have their own lines
	for {
		more, err := st.Step()
		if err != nil {
			return true, "no plan: " + err.Error()
		}
		if !more {
			break
		}
		line := st.ColumnText(3)
		lines = append(lines, line)
		if verb, name, ok := strings.Cut(line, " "); ok && (verb == "MATERIALIZE" || verb == "CO-ROUTINE") {
			named[name] = true
		}
	}
	for _, line := range lines {
		name, ok := strings.CutPrefix(line, "SCAN ")
		if !ok || strings.Contains(name, "VIRTUAL TABLE") || strings.HasPrefix(name, "CONSTANT ROW") ||
			strings.HasPrefix(name, "(") {
			continue
		}
		name, _, _ = strings.Cut(name, " ")
		full = full || !named[name]
	}
	return full, strings.Join(lines, "\n")
}
