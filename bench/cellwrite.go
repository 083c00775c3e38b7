package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Write prints the report as tables.
func (r *CellReport) Write(w io.Writer) error {
	fmt.Fprintf(w, "%s, commit %s, %s\n%s\n", r.At.Format(time.RFC3339), r.Build.Commit, r.Build.Go, r.Machine)
	fmt.Fprintf(w, "one node and three in turn, %d rounds, medians\n", r.Rounds)
	fmt.Fprintf(w, "fsync of 4 KiB alone: %.0f/s, p50 %s, p99 %s, max %s\n", r.Fsync.PerSec, ms(r.Fsync.P50), ms(r.Fsync.P99), ms(r.Fsync.Max))
	table := func(title, head string, lines func(t io.Writer)) error {
		fmt.Fprintf(w, "\n%s\n\n", title)
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, head)
		lines(t)
		return t.Flush()
	}
	var errs []error
	if len(r.Commit) > 0 {
		errs = append(errs, table("Posts on the internal path, all nodes in one process", "load\tnodes\tdone/s\tleast\tmost\tp50\tp90\tp99\tmax\terrors\tCPU/op\tfsync p50\tp99\tstall\t", func(t io.Writer) {
			for _, c := range r.Commit {
				fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%s\t%s\t%s\t%s\t%d\t%.0f us\t%s\t%s\t%s\t\n", c.Load, c.Nodes, c.PerSec, c.LeastPerSec, c.MostPerSec,
					ms(c.P50), ms(c.P90), ms(c.P99), ms(c.Max), c.Errors, c.CPU, ms(c.FsyncP50), ms(c.FsyncP99), ms(c.Stall))
			}
		}))
	}
	if len(r.Delivery) > 0 {
		errs = append(errs, table("Deliveries to a socket at 500 posts/s", "from, to\tposted\tnodes\tcount\tp50\tp90\tp99\tmax\terrors\t", func(t io.Writer) {
			for _, c := range r.Delivery {
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%d\t\n", c.Layer, c.Load, c.Nodes, c.Done, ms(c.P50), ms(c.P90), ms(c.P99), ms(c.Max), c.Errors)
			}
		}))
	}
	if len(r.Cost) > 0 {
		errs = append(errs, table("What the processes take, over all nodes", "nodes\tidle RSS\tRSS\theap\tidle CPU\tCPU/post\tCPU/delivery\tsubscribers\tdeliveries\tbus frames/s\t", func(t io.Writer) {
			for _, c := range r.Cost {
				fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%.1f %%\t%.0f us\t%.1f us\t%d\t%d\t%.1f\t\n", c.Nodes, mib(c.IdleRSS), mib(c.RSS), mib(c.Heap), c.Idle, c.Post, c.Delivery,
					c.Subscribers, c.Delivered, c.Bus)
			}
		}))
	}
	if len(r.Relay) > 0 {
		errs = append(errs, table("The ephemeral lane between three nodes: one sends, two listen", "load\tpublished/s\tdelivered/s\trefused\tmissing\trepaired\tlost\tCPU/delivery\t", func(t io.Writer) {
			for _, c := range r.Relay {
				fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%d\t%d\t%d\t%d\t%.1f us\t\n", c.Load, c.Published, c.Delivered, c.Refused, c.Seen, c.Repaired, c.Lost, c.CPU)
			}
		}))
	}
	if len(r.Pauses) > 0 {
		errs = append(errs, table("The longest time without an acknowledged write, through each of the nodes that stay (a process per node)", "what\ttimes\tmedian\tworst\tbefore\trefused\t", func(t io.Writer) {
			for _, c := range r.Pauses {
				fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t\n", c.What, len(c.Times), ms(c.Median), ms(c.Worst), ms(c.Before), c.Refused)
			}
		}))
		for _, c := range r.Pauses {
			var all []string
			for _, t := range c.Times {
				all = append(all, ms(t))
			}
			fmt.Fprintf(w, "%s: %s\n", c.What, strings.Join(all, ", "))
		}
	}
	for _, rows := range [][]CellRow{r.Commit, r.Delivery} {
		for _, c := range rows {
			if c.FirstErr != "" {
				fmt.Fprintf(w, "%s, %d nodes: the first of %d errors: %s\n", c.Load, c.Nodes, c.Errors, c.FirstErr)
			}
		}
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func mib(b int64) string { return fmt.Sprintf("%.0f MiB", float64(b)/(1<<20)) }
