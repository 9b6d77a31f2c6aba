#!/usr/bin/env node
import '../bundle/pageferry.js'
