"""The contract: names, models of the custom resources, reasons, errors. No I/O."""
