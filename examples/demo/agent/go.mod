module outrider.dev/examples/demo/agent

go 1.24
